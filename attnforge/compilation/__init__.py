"""Compiles variants for any target, with no GPU, and reports what their kernels need.

compile_variant() does it in this process; a CompilePool in child processes, several at once, under a deadline.
"""

from attnforge.compilation.compiler import compile_module, compile_variant
from attnforge.compilation.job import VariantData
from attnforge.compilation.outcome import CompileReport, Failure, FailureKind, KernelReport
from attnforge.compilation.pool import CompilePool, Outcome
from attnforge.compilation.worker import Worker, WorkerNotStartedError, python_command, serve

__all__ = [
    "CompilePool",
    "CompileReport",
    "Failure",
    "FailureKind",
    "KernelReport",
    "Outcome",
    "VariantData",
    "Worker",
    "WorkerNotStartedError",
    "compile_module",
    "compile_variant",
    "python_command",
    "serve",
]
