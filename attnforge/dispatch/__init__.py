"""Problem -> decision -> launch."""
