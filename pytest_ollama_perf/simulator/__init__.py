"""A faithful Ollama without a model."""
