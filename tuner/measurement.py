"""What comes of a trial that ran: its times. What comes of one that did not is a Failure (attnforge.compilation)."""

from __future__ import annotations

import msgspec


class Measurement(msgspec.Struct, frozen=True, tag="measurement"):
    """The times of one config on one problem."""

    kernel_ms: dict[str, float]
    """Median milliseconds with a cold L2, by kernel, in order of launch: forward; or delta, dkdv, dq."""
    runs: int
    """How many timed runs the medians are of."""
    stopped_early: bool = False
    """Whether a few runs sufficed to see that no kernel of it comes near the best."""

    @property
    def total_ms(self) -> float:
        """Milliseconds of one call: the sum over its kernels."""
        return sum(self.kernel_ms.values())
