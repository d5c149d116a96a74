"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Such as 1 spec, 2 specs; ``nouns`` is the plural where an s does not make it."""
    return f"{number} {noun if number == 1 else nouns or f'{noun}s'}"
