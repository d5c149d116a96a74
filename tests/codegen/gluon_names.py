"""The names of Triton and Gluon that rendered modules use, as what a simulated machine does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.codegen import gluon_pieces as pieces
from tests.codegen.gluon_pieces import Barrier, BarrierLayout, Layout, Pointer, tile

if TYPE_CHECKING:
    from tests.codegen.gluon_simulator import Machine


def jit(function: Any = None, **options: Any) -> Any:
    return function if function is not None else lambda each: each


def triton(machine: Machine) -> SimpleNamespace:
    language = SimpleNamespace(
        constexpr=pieces.constexpr, float32=np.float32, int64=np.int64,
        program_id=lambda axis: pieces.Int(machine.program.number),
        zeros=lambda shape, dtype: tile(np.zeros(shape, dtype)), arange=lambda start, end: tile(np.arange(start, end)),
        load=Pointer.load, store=Pointer.store, where=lambda test, yes, no: tile(np.where(test, yes, no)),
        sum=lambda x, axis: tile(np.sum(x, axis)), reshape=np.reshape, permute=np.transpose,
    )  # fmt: skip
    return SimpleNamespace(jit=jit, cdiv=lambda count, size: -(-count // size), language=language)


def gluon(machine: Machine) -> SimpleNamespace:
    reduced = {"sum": np.sum, "max": np.max}
    language = SimpleNamespace(
        constexpr=pieces.constexpr, static_range=range, float16=np.float16, bfloat16=None, float32=np.float32,
        int32=np.int32, uint16=np.uint16, uint32=np.uint32, int64=np.int64,
        NVMMADistributedLayout=Layout, SliceLayout=Layout, DotOperandLayout=Layout,
        NVMMASharedLayout=SimpleNamespace(get_default_for=lambda *_: Layout()),
        allocate_shared_memory=machine.allocate, warp_specialize=machine.specialize,
        inline_asm_elementwise=machine.assembly,
        program_id=lambda axis: machine.program.number, num_programs=lambda axis: machine.programs,
        zeros=lambda shape, *_: tile(np.zeros(shape, np.float32)),
        full=lambda shape, value, *_: tile(np.full(shape, value, np.float32)),
        arange=lambda start, end, layout: tile(np.arange(start, end)),
        where=lambda test, yes, no: tile(np.where(test, yes, no)) if np.ndim(test) else (no, yes)[bool(test)],
        minimum=lambda a, b: np.minimum(a, b) if np.ndim(a) else min(a, b),
        maximum=lambda a, b: np.maximum(a, b) if np.ndim(a) else max(a, b),
        split=lambda x: (x[..., 0], x[..., 1]), join=lambda *parts: tile(np.stack(parts, -1)),
        exp2=np.exp2, log2=np.log2, reshape=np.reshape, permute=np.transpose, load=Pointer.load,
        expand_dims=lambda x, axis: np.expand_dims(x, axis),
        convert_layout=lambda x, layout, assert_trivial=False: x, cast=lambda value, dtype: value,
        store=Pointer.store,
        **{name: (lambda x, axis, f=f: tile(f(x, axis=axis))) for name, f in reduced.items()},
    )  # fmt: skip

    hopper = SimpleNamespace(
        fence_async_shared=machine.fence, warpgroup_mma=machine.multiply, warpgroup_mma_wait=machine.multiply_wait,
        mbarrier=SimpleNamespace(
            MBarrierLayout=BarrierLayout, init=Barrier.start, expect=Barrier.expect, arrive=Barrier.arrive,
            wait=lambda barrier, phase, pred=True: machine.wait_until(lambda: not pred or barrier.phase != phase),
        ),
        tma=SimpleNamespace(async_load=machine.load, async_store=machine.store, store_wait=machine.store_wait),
    )  # fmt: skip
    return SimpleNamespace(jit=jit, constexpr_function=jit, language=language, hopper=hopper)
