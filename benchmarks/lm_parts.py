"""What the benchmarks of language models share: models, counted work, and limits of the machine."""

import importlib.metadata as metadata
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp

from jrl.lm.config import Config, Rope

__all__ = [
    "QWEN",
    "bandwidth",
    "matmul_rate",
    "seconds",
    "small",
    "training_flops",
    "versions",
    "weights",
]

QWEN = Config(
    vocab_size=151_936,
    num_layers=24,
    width=896,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    mlp_width=4864,
    rope=Rope(theta=1e6),
    qkv_bias=True,
)
"""Sizes of Qwen2.5-0.5B; the weights are random, of which no time depends."""


def small(vocab_size: int) -> Config:
    """Returns Llama's architecture at a size for two cores: 4.2 million weights in its blocks."""
    return Config(
        vocab_size=vocab_size,
        num_layers=4,
        width=256,
        num_heads=8,
        num_kv_heads=8,
        mlp_width=1024,
        tied=False,
    )


def weights(c: Config) -> int:
    """Counts the weights that every token is multiplied by: without a table that is looked up."""
    attention = 2 * c.width * c.head_dim * (c.num_heads + c.num_kv_heads)
    return c.num_layers * (attention + 3 * c.width * c.mlp_width) + c.vocab_size * c.width


def training_flops(c: Config, lengths: Iterable[int]) -> float:
    """Counts the operations of forward and backward pass over texts of some lengths.

        6 N T + 12 layers heads head_dim sum over texts of l (l + 1) / 2

    with N `weights` and T tokens: a multiplication and an addition each, forwards once and
    backwards twice, and of attention only what is not masked. What is computed anew does not count.

    Source: Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311, who count what is
    masked too.
    """
    lengths = list(lengths)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    attention = 12 * c.num_layers * c.num_heads * c.head_dim * pairs
    return 6 * weights(c) * sum(lengths) + attention


def seconds(call: Callable, *args, repeats: int = 7) -> float:
    """Returns the median time of a call that is waited for, behind two that are not counted."""
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def matmul_rate(dtype, size: int = 2048) -> float:
    """Measures the operations per second of a product of square matrices."""
    x, y = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    return 2 * size**3 / seconds(jax.jit(jnp.matmul), x, y)


def bandwidth(size: int) -> float:
    """Measures the bytes per second, read and written, of a copy of an array of `size` bytes."""
    # A bare copy might be no work: one bit is flipped.
    x = jnp.zeros(size // 4, jnp.uint32)
    return 2 * x.nbytes / seconds(jax.jit(lambda x: x ^ 1), x)


def versions(names: Sequence[str] = ("torch", "transformers")) -> dict[str, str]:
    """Returns the versions of those that are installed."""
    known = {x.metadata["Name"] for x in metadata.distributions()}
    return {name: metadata.version(name) for name in names if name in known}
