"""What can go wrong at run time; each error owns its message and says what to do."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike

from attnforge.codegen import AttentionSpec


class AttnforgeError(Exception):
    """Base of every error that attnforge raises on its own account; the command line prints it as one line."""


class UnsupportedInputError(AttnforgeError, ValueError):
    """An argument that no kernel can take; raised before anything is launched."""

    def __init__(self, argument: str, given: object, supported: str) -> None:
        super().__init__(f"{argument}: got {given}; supported: {supported}")
        self.argument = argument
        self.given = given
        self.supported = supported


class KernelNotGeneratedError(AttnforgeError):
    """A spec that can be rendered, but whose kernels are neither shipped nor in the user's folder."""

    def __init__(self, spec: AttentionSpec, command: str) -> None:
        super().__init__(f"no kernel was generated for {spec.name}: run `{command}` once")
        self.spec = spec
        self.command = command


class NoGpuError(AttnforgeError):
    """The target is the GPU of this machine, and there is none."""

    def __init__(self) -> None:
        super().__init__("torch sees no GPU on this machine: name a target, such as --target sm_90")


class UnknownTargetError(AttnforgeError, ValueError):
    """An arch that attnforge has no facts about."""

    def __init__(self, given: str, known: Iterable[str]) -> None:
        super().__init__(f"target {given!r} is not known; known targets: {', '.join(known)}")
        self.given = given


class KernelRefused(AttnforgeError):  # noqa: N818 - the design's word: a file is refused, the defaults serve
    """A kernel file whose bytes are not what attnforge generated, or that others could have changed."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"kernel {path} is refused: {reason}")
        self.path = path
        self.reason = reason


class CacheRefused(AttnforgeError):  # noqa: N818 - as above
    """A tuned cache that is not used; the message says what is wrong with it and what to do."""

    remedy = "see to the file, or set ATTNFORGE_CACHE_DIR to another folder"

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"tuned cache {path} is refused: {reason}; {self.remedy}")
        self.path = path
        self.reason = reason


class CorruptCacheRefused(CacheRefused):
    """Its content is truncated, edited or hostile."""

    remedy = "move it away, or run `attnforge tune`, which keeps it as *.refused and writes a new one"


class ForeignCacheRefused(CacheRefused):
    """It was made for another GPU than the one that its place says."""

    remedy = "move it away; `attnforge cache path` prints the place of this GPU's"


class NewerCacheRefused(CacheRefused):
    """Its format is newer than this attnforge reads."""

    remedy = "upgrade attnforge, or set ATTNFORGE_CACHE_DIR to another folder"


class UntrustedCacheRefused(CacheRefused):
    """Another user owns it or could change it, or it is not a plain file."""

    remedy = "make it a plain file in folders that only you can write (chmod go-w), or set ATTNFORGE_CACHE_DIR"


class CacheNotWrittenError(AttnforgeError):
    """A tuned cache could not be written: the file, if there was one, is as it was."""

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        remedy = "see to that, or name another place (ATTNFORGE_CACHE_DIR, --into)"
        super().__init__(f"tuned cache {path} was not written: {reason}; {remedy}")
        self.path = path
        self.reason = reason


class CacheRefusedWarning(UserWarning):
    """A tuned cache was refused and the next one, or the defaults, serve instead."""
