"""Readings of GPUs and of the machine while a load runs. They never change the load's metrics."""
