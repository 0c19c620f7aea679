"""The values that all other packages share."""
