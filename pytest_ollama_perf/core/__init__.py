"""The values that every other package passes on."""
