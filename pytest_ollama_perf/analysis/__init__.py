"""Judging runs. Everything here is pure: values in, values out."""
