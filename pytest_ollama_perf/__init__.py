"""Performance regression tests for models served by Ollama."""
