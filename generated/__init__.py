"""Rendered kernels of the shipped specs, the shipped tuned caches, and the manifest of both. Never edited by hand."""
