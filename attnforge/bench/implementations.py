"""Ours and the peers: how each is called, with which layout, and why it may be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnforge.bench.case import Case
from attnforge.bench.results import OURS
from attnforge.errors import AttnforgeError
from attnforge.ops import attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Build = Callable[[Case, torch.device], Attend]


class UnknownPeerError(AttnforgeError):
    """A name that is no peer's."""

    def __init__(self, given: str) -> None:
        super().__init__(f"--peers {given!r}: supported: {', '.join(PEERS)} (comma-separated), or none")


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute attention."""

    name: str
    label: str
    heads_first: bool
    """Whether it takes (B, H, S, D); else (B, S, H, D). Each gets its own layout, contiguous."""
    build: Build
    """Makes the function of q, k and v for a case."""
    module: str | None = None
    """What must be installed, beside torch, for it to be among the default peers."""


def _ours(case: Case, device: torch.device) -> Attend:
    return lambda q, k, v: attention(q, k, v, causal=case.causal)


def _sdpa(backend: SDPBackend) -> Build:
    def build(case: Case, device: torch.device) -> Attend:
        grouped = case.kv_heads != case.heads

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=case.causal, enable_gqa=grouped)

        return attend

    return build


def _causal_mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _flex(case: Case, device: torch.device) -> Attend:
    import torch._functorch.config as functorch_config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Past 8 shapes of one function dynamo falls back to the unfused version: every case starts anew. And a backward
    # that may overwrite its saved tensors cannot be run twice, as timing it must.
    torch.compiler.reset()
    functorch_config.donated_buffer = False
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    mask = create_block_mask(_causal_mask, None, None, case.seqlen, case.seqlen, device) if case.causal else None
    grouped = case.kv_heads != case.heads

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = compiled(q, k, v, block_mask=mask, enable_gqa=grouped)
        return out

    return attend


def _flash_attention_4(case: Case, device: torch.device) -> Attend:
    from flash_attn.cute.interface import flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = flash_attn_func(q, k, v, causal=case.causal)
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return attend


OUR_IMPLEMENTATION = Implementation(OURS, "attnforge", True, _ours)
PEERS = {
    peer.name: peer
    for peer in (
        Implementation("flash", "SDPA flash (FA2)", True, _sdpa(SDPBackend.FLASH_ATTENTION)),
        Implementation("cudnn", "SDPA cuDNN", True, _sdpa(SDPBackend.CUDNN_ATTENTION)),
        Implementation("flex", "FlexAttention", True, _flex),
        Implementation("fa4", "FlashAttention-4", False, _flash_attention_4, "flash_attn.cute.interface"),
    )
}


def _is_installed(module: str | None) -> bool:
    """Whether a module's file is there; its packages are not imported, which could fail in ways of their own."""
    if module is None:
        return True
    package, *rest = module.split(".")
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return any(Path(folder, *rest).with_suffix(".py").is_file() for folder in folders or ())


def implementations(peers: str | None = None) -> list[Implementation]:
    """Ours, then the peers of a comma-separated list: all that are installed when None, no peer for ``none``.

    Raises UnknownPeerError.
    """
    if peers is None:
        return [OUR_IMPLEMENTATION, *(peer for peer in PEERS.values() if _is_installed(peer.module))]
    names = [name.strip() for name in peers.split(",") if name.strip()]
    if names == ["none"]:
        return [OUR_IMPLEMENTATION]
    for name in names:
        if name not in PEERS:
            raise UnknownPeerError(name)
    return [OUR_IMPLEMENTATION, *(PEERS[name] for name in dict.fromkeys(names))]
