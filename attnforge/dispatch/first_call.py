"""A call that was not made before: decided, loaded, compiled and launched; with smaller configs when that fails."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import ModuleType

from triton.compiler import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from attnforge.codegen import AttentionSpec, Schedule
from attnforge.dispatch.decision import Decision, DecisionKind, decide, served, smaller_defaults
from attnforge.dispatch.errors import KernelFallbackWarning, NoWorkingConfigError, PlanRefusedError
from attnforge.dispatch.launch import InterpretedLaunch, Launch, Output, Tensors, first_launch
from attnforge.dispatch.surroundings import Surroundings
from attnforge.problem import Problem

logger = logging.getLogger("attnforge")


@dataclass(frozen=True, slots=True)
class Call:
    """One pass over one set of tensors."""

    spec: AttentionSpec
    problem: Problem
    softmax_scale: float
    inputs: Tensors
    outputs_of: Callable[[ModuleType], list[Output]]
    """What the module of a variant writes."""
    deterministic: bool = False
    """Whether to pass over variants whose results do not repeat to the bit."""


def make(call: Call, surroundings: Surroundings) -> tuple[Tensors, Launch | InterpretedLaunch]:
    """The call's outputs, and the launch to hold for the next one like it.

    A config that cannot be compiled or needs more than the device has is passed over with a KernelFallbackWarning, now
    and in later decisions; a schedule that cannot take the layout of the call's tensors, now alone. Raises
    NoWorkingConfigError when none is left.
    """
    target = surroundings.target_of(call.inputs[0].device)
    failed = surroundings.failed.setdefault((target, call.problem.dtype), set())
    refused: list[Schedule] = []
    failure: Exception | None = None
    for decision in _decisions(call, surroundings, refused):
        logger.debug("%s on %s: %s (%s)", call.problem, target.slug, decision.variant.name, decision.reason)
        try:
            return _launch(call, decision, surroundings)
        except PlanRefusedError as refusal:  # of this call's layout alone: the config stays in office
            logger.debug("%s: %s", call.problem, refusal)
            failure = refusal
            refused.append(decision.variant.schedule)
        except (OutOfResources, PTXASError, CompilationError, RuntimeError) as error:
            if not _is_of_the_config(error):
                raise
            failure = error
            failed.add(decision.variant)
            warnings.warn(KernelFallbackWarning(decision.variant, target, error), stacklevel=7)  # attention()'s caller
    raise NoWorkingConfigError(call.spec, target, failure) from failure


def _launch(call: Call, decision: Decision, surroundings: Surroundings) -> tuple[Tensors, Launch | InterpretedLaunch]:
    module = surroundings.kernels.load(decision.variant)
    outputs = call.outputs_of(module)
    if surroundings.interpreted:
        interpreted = InterpretedLaunch(module, outputs, call.softmax_scale)
        return interpreted(*call.inputs), interpreted
    return first_launch(module, call.inputs, outputs, call.softmax_scale)


def _decisions(call: Call, surroundings: Surroundings, refused: Collection[Schedule]) -> Iterator[Decision]:
    """What the tuned caches say, then the default configs, then ever smaller ones: without those that failed before.

    ``refused`` may grow from one to the next: schedules to pass over in this call. What the caches say without them is
    as good as it was with them.
    """
    target = surroundings.target_of(call.inputs[0].device)
    failed = surroundings.failed[target, call.problem.dtype]
    caches = surroundings.caches_for(target)
    before = None
    while before != len(refused):
        before = len(refused)
        decision = decide(call.spec, call.problem, target, caches, failed, refused, deterministic=call.deterministic)
        if decision.variant not in failed and decision.variant.schedule not in refused:
            yield decision
    for default in smaller_defaults(call.spec, call.problem.dtype, target.limits):
        variant = served(default, call.deterministic)
        repeats = variant.is_deterministic or not call.deterministic
        if variant not in failed and variant.schedule not in refused and repeats:
            yield Decision(variant, DecisionKind.DEFAULT, "what was preferred does not run: a smaller default")


def _is_of_the_config(error: Exception) -> bool:
    """Whether another config may do better. A pass of the compiler that gives up is a bare RuntimeError."""
    return not isinstance(error, RuntimeError) or "PassManager::run failed" in str(error)
