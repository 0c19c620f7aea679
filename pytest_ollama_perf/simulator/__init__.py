"""An Ollama server without a model: slots, queue, scheduler, prompt cache and faults."""
