"""Talking to Ollama: addresses, the control plane, and the measured path."""
