"""How often the final comparison is right, on an invented GPU of every kind: ``python -m tests.tuner.switches``.

Prints how many sessions switch among equal configs, and how many find the one that is 5 % faster.
"""

from attnforge.tuner.comparison import winner
from tests.tuner.invented_gpu import KINDS, compared

SESSIONS = 250
EQUAL = [1.0, 1.0, 1.0, 1.0, 1.0]
FASTER, FASTEST = [1.0, 1.0, 1.05, 0.98], 2
"""Speeds, that of the config in office first, and which of them is to be found."""


def false_switches(kind: str, sessions: int = SESSIONS) -> float:
    """Share of the sessions that switch although nothing is faster."""
    return sum(winner(compared(EQUAL, kind, seed)) != 0 for seed in range(sessions)) / sessions


def found_gains(kind: str, sessions: int = SESSIONS) -> float:
    """Share of the sessions that find a gain of 5 %."""
    return sum(winner(compared(FASTER, kind, seed)) == FASTEST for seed in range(sessions)) / sessions


if __name__ == "__main__":
    for name in KINDS:
        print(f"{name:9} false switches {false_switches(name):5.1%}, gains of 5 % found {found_gains(name):6.1%}")
