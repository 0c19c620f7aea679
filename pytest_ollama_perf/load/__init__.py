"""Firing a workload."""
