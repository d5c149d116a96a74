"""The comparison of two trainings, small and on the CPU, with SDPA in the place of attnforge."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

SMALL = [
    f"--{name}={value}"
    for name, value in {
        "steps": 6,
        "layers": 1,
        "width": 32,
        "heads": 2,
        "seqlen": 32,
        "batch": 2,
        "device": "cpu",
    }.items()
]


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.fixture
def train_gpt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "train_gpt.py"
    spec = importlib.util.spec_from_file_location("train_gpt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = torch.arange(4096).remainder(251).to(torch.uint8)
    monkeypatch.setattr(module, "library_text", lambda: text)
    monkeypatch.setitem(module.ATTENTIONS, "sdpa", sdpa)
    return module


def test_equal_attention_gives_equal_losses(train_gpt: ModuleType, tmp_path: Path) -> None:
    train_gpt.ATTENTIONS["attnforge"] = sdpa
    assert train_gpt.main([*SMALL, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "losses.png").stat().st_size > 5000


def test_attention_that_sees_the_future_is_noticed(
    train_gpt: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_gpt.ATTENTIONS["attnforge"] = lambda q, k, v: 3 * scaled_dot_product_attention(q, k, v)
    train_gpt.MOST_GAP = 1e-5  # six steps of a tiny model do not diverge far
    assert train_gpt.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "largest gap" in capsys.readouterr().out


def test_losses_are_smoothed_before_they_are_compared(train_gpt: ModuleType) -> None:
    assert train_gpt.largest_gap([1.0, 1.0], [1.0, 2.0]) == pytest.approx(0.1)
