"""Other plugins and services: one module for each that needs special support."""
