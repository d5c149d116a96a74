"""Calls of a stand-in GPU's dispatcher, with small tensors that a test may replace."""

from __future__ import annotations

from typing import Any

import torch

from tests.runtime.stand_ins import StandInGpu


def tensor(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def misaligned(*shape: int) -> torch.Tensor:
    """Starts 2 bytes behind an address that 16 divides."""
    memory = torch.zeros(torch.Size(shape).numel() + 1, dtype=torch.float16)
    assert memory.data_ptr() % 16 == 0
    return memory[1:].view(shape)


def qkv(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"q": tensor(2, 4, 8, 64), "k": tensor(2, 2, 9, 64), "v": tensor(2, 2, 9, 64)} | changes


def forward(gpu: StandInGpu, *, causal: Any = False, scale: Any = None, deterministic: Any = False,
            needs_grad: bool = False, **tensors: Any) -> tuple[torch.Tensor, ...]:  # fmt: skip
    return gpu.dispatcher.forward(*(qkv() | tensors).values(), causal, scale, deterministic, needs_grad)


def backward(gpu: StandInGpu, **changes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    tensors = {"dout": tensor(2, 4, 8, 64), **qkv(), "out": tensor(2, 4, 8, 64), "lse": torch.zeros(2, 4, 8)} | changes
    return gpu.dispatcher.backward(*tensors.values(), True, None, False)


def hows(gpu: StandInGpu) -> list[str]:
    """How each launch was made, and forget them."""
    launches = [how for _, how in gpu.recorder.names()]
    gpu.recorder.launches.clear()
    return launches
