"""Samples to numbers: definitions, summaries, confidence intervals, formatting."""
