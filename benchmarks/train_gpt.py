"""Trains one small GPT twice, with attnforge's attention and with SDPA's, and compares the losses.

    python benchmarks/train_gpt.py --out benchmarks/results/gpt

12 layers, 768 wide, byte-level, on the text of Python's standard library; the same seed, batches and optimiser. Prints
the largest gap between the smoothed losses, writes losses.json and losses.png, and exits 1 where the gap is above 0.01.
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from attnforge import attention

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(q, k, v), each (batch, heads, seqlen, head dim), to what each query gathers of the values at and before it."""
ATTENTIONS: dict[str, Attention] = {
    "attnforge": lambda q, k, v: attention(q, k, v, causal=True),
    "sdpa": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
}
MOST_GAP = 0.01
"""Nats a byte between the smoothed curves."""
SMOOTHING = 0.9
"""Share of what came before in the exponential mean of the losses."""


class Block(nn.Module):
    """Attention and a multilayer perceptron, each behind a layer norm and beside a residual connection."""

    def __init__(self, width: int, heads: int, attend: Attention) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x and the result are (batch, seqlen, width)."""
        # (B, S, 3, H, D) in memory: q, k and v are strided views, as in most models.
        q, k, v = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Gpt(nn.Module):
    """A byte-level language model with learned positions."""

    def __init__(self, layers: int, width: int, heads: int, seqlen: int, attend: Attention) -> None:
        super().__init__()
        self.bytes, self.positions = nn.Embedding(256, width), nn.Embedding(seqlen, width)
        self.blocks = nn.Sequential(*(Block(width, heads, attend) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """(batch, seqlen) bytes to (batch, seqlen, 256) logits."""
        x = self.bytes(text) + self.positions.weight[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def library_text() -> torch.Tensor:
    """The sources of Python's standard library, one after another, as bytes."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    sources = sorted(path for path in folder.glob("*.py") if path.is_file())
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in sources)), dtype=torch.uint8)


def batches(text: torch.Tensor, batch: int, seqlen: int, seed: int) -> Iterator[torch.Tensor]:
    """Pieces of seqlen + 1 bytes, (batch, seqlen + 1), at random places; the same for equal seeds."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - seqlen - 1, (batch,), generator=draw)
        yield torch.stack([text[start : start + seqlen + 1] for start in starts.tolist()]).long()


def train(attend: Attention, options: argparse.Namespace) -> tuple[list[float], float]:
    """The loss of each step, in nats a byte, and the seconds that all of them took."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model = Gpt(options.layers, options.width, options.heads, options.seqlen, attend).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    pieces = batches(library_text(), options.batch, options.seqlen, options.seed)
    losses, started = [], time.perf_counter()
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-4 * min(1.0, (step + 1) / 30)
        text = next(pieces).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(text[:, :-1])
        loss = cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses, time.perf_counter() - started


def smoothed(losses: list[float]) -> list[float]:
    """Exponential mean."""
    means = losses[:1]
    for loss in losses[1:]:
        means.append(SMOOTHING * means[-1] + (1 - SMOOTHING) * loss)
    return means


def largest_gap(one: list[float], other: list[float]) -> float:
    """Between two smoothed curves."""
    return max(abs(a - b) for a, b in zip(smoothed(one), smoothed(other), strict=True))


def draw(losses: dict[str, list[float]], path: Path) -> None:
    """The smoothed curves, one over the other."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, curve), style in zip(losses.items(), ("-", "--"), strict=True):
        axes.plot(smoothed(curve), style, label=name)
    axes.set(
        xlabel="step", ylabel="loss (nats a byte, smoothed)", title=f"largest gap {largest_gap(*losses.values()):.4f}"
    )
    axes.legend()
    figure.savefig(path, dpi=120)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "steps": 300, "layers": 12, "width": 768, "heads": 12, "seqlen": 1024, "batch": 16, "seed": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpt-losses"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit status."""
    options = options_of(arguments)
    losses = {}
    for name, attend in ATTENTIONS.items():
        losses[name], seconds = train(attend, options)
        print(
            f"{name}: {options.steps} steps in {seconds:.1f} s, last loss {smoothed(losses[name])[-1]:.4f}", flush=True
        )
    gap = largest_gap(*losses.values())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "losses.json").write_text(json.dumps(losses) + "\n")
    draw(losses, options.out / "losses.png")
    print(f"largest gap between the smoothed losses: {gap:.4f} (bar: {MOST_GAP})")
    return int(gap > MOST_GAP)


if __name__ == "__main__":
    sys.exit(main())
