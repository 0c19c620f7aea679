"""Other plugins of pytest: one module for each that needs more than good manners."""
