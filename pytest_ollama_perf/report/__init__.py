"""Saying what was found, to people and to programs."""
