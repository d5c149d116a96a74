"""Finds the best configs for a GPU."""
