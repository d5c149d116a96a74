"""What can go wrong between a valid call and its launch."""

from __future__ import annotations

from types import ModuleType

from attnforge.codegen import AttentionSpec, Variant
from attnforge.errors import AttnforgeError
from attnforge.target import Target


class NoWorkingConfigError(AttnforgeError):
    """No config of a spec, down to the smallest default, can be compiled and launched."""

    def __init__(self, spec: AttentionSpec, target: Target, last: Exception | None) -> None:
        super().__init__(f"no config of {spec.name} runs on {target.slug}; the last failure: {last}")
        self.spec = spec
        self.target = target


class ColdCaptureError(AttnforgeError):
    """A CUDA graph is being captured, and a call is in it that was never made before."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__(
            f"{spec.name} would have to be compiled while a CUDA graph is captured: make the same call (shapes,"
            " strides, dtypes, options; its backward too) once before the capture"
        )
        self.spec = spec


class ForkedProcessError(AttnforgeError):
    """A forked child uses the CUDA state of its parent."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked from one that had used CUDA, which CUDA does not support: start it with"
            " multiprocessing's 'spawn' or 'forkserver' method"
        )


class ForeignTensorError(AttnforgeError):
    """A rendered module's plan() launches a kernel on a tensor that is neither an argument nor a view of one."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(f"plan() of {module.__name__} uses a tensor that it was not given: its template is broken")


class PlanRefusedError(AttnforgeError):
    """A rendered module's plan() cannot take the layout of a call's tensors; another schedule's can."""

    def __init__(self, module: ModuleType, reason: ValueError) -> None:
        super().__init__(f"{module.__name__} cannot take these tensors: {reason}")


class KernelFallbackWarning(UserWarning):
    """A config could not be compiled or launched, and a default config runs instead."""

    def __init__(self, failed: Variant, target: Target, reason: Exception) -> None:
        super().__init__(
            f"{failed.name} does not run on {target.slug} and a default config serves instead: {reason}"
            f" (tune anew with `attnforge tune --head-dim {failed.spec.head_dim}`)"
        )
        self.failed = failed
