"""Tuned, generated FlashAttention kernels in Triton."""

__version__ = "0.1.0"
