"""Options, ini keys and environment; the load options of markers; datasets."""
