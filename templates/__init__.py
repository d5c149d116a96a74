"""The Jinja templates, readable as Triton: one per schedule and pass, shared parts in ``parts/``."""
