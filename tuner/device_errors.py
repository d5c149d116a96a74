"""What a tune is told of a device that cannot be used, or no longer."""

from __future__ import annotations

from attnforge.compilation import Failure
from attnforge.errors import AttnforgeError
from attnforge.tuner.messages import Identity
from attnforge.wording import counted

NEVER_OPENED = (
    "\nSee in nvidia-smi whether that GPU is in good health and free; CUDA_VISIBLE_DEVICES set to others, such as"
    " CUDA_VISIBLE_DEVICES=1, leaves it out"
)


class WorkerUnusableError(AttnforgeError):
    """No worker can be brought to say what it runs on."""

    def __init__(self, failure: Failure, device: str = "its device", remedy: str = NEVER_OPENED) -> None:
        self.failure = failure
        self.what = f"no measuring worker can open {device}: {failure.message}"
        super().__init__(self.what + remedy)


class DeviceLostError(WorkerUnusableError):
    """A device that had been open cannot be opened again."""

    def __init__(self, identity: Identity, failure: Failure) -> None:
        remedy = (
            "\nEvery finished trial is kept: once nvidia-smi shows that GPU in good health, or with"
            " CUDA_VISIBLE_DEVICES set to others, the same command goes on from there"
        )
        super().__init__(failure, f"{identity.target.name} ({identity.uuid}) any more", remedy)
        self.identity = identity


class DeviceLostWarning(UserWarning):
    """A GPU is lost, and the tune goes on with the others."""

    def __init__(self, error: WorkerUnusableError, left: int) -> None:
        super().__init__(f"{error.what}\nThe tune goes on without it, on {counted(left, 'GPU')}")
