"""Prepare servers, measure a run, evaluate it, compare it with stored runs."""
