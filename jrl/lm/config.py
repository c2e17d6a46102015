"""What a decoder-only transformer is made of: sizes and choices, all compiled in."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jrl.types import Array, Float, check_sizes

__all__ = ["Config", "Rope", "frequencies"]


@dataclasses.dataclass(frozen=True)
class Rope:
    """How fast rotary position embeddings turn."""

    theta: float = 10_000.0
    """Base of the wavelengths."""
    scaling: Literal["none", "linear", "llama3"] = "none"
    """How a longer context than the one of pretraining is reached."""
    factor: float = 1.0
    """What positions are divided by (linear), or the low frequencies alone (llama3)."""
    low_factor: float = 1.0
    """llama3: wavelengths above original_length / low_factor are stretched by `factor`."""
    high_factor: float = 4.0
    """llama3: wavelengths below original_length / high_factor are left alone."""
    original_length: int = 8192
    """llama3: context of pretraining."""


def frequencies(rope: Rope, head_dim: int) -> Float[Array, " half"]:
    """Returns the angle that each pair of features turns by per position, float32 [H / 2].

        f_i = theta^(-2 i / H),    linear: f / factor
        llama3: f / factor for long waves, f for short ones, and between them
                (1 - s) f / factor + s f,  s = (original / wave - low) / (high - low)

    Source: Su et al. 2021, eq. 15, https://arxiv.org/abs/2104.09864; the blend of Llama 3.1 is
    that of its reference code, https://github.com/meta-llama/llama-models.

    >>> frequencies(Rope(theta=100.0), 4)
    Array([1. , 0.1], dtype=float32)
    """
    f = rope.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.scaling == "linear":
        f = f / rope.factor
    if rope.scaling == "llama3":
        turns = rope.original_length * f / (2 * math.pi)
        share = (turns - rope.low_factor) / (rope.high_factor - rope.low_factor)
        share = np.clip(share, 0.0, 1.0)
        f = (1 - share) * f / rope.factor + share * f
    return jnp.asarray(f, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and choices of one model; the defaults are Llama's choices at a size for a laptop."""

    vocab_size: int = 256
    """Tokens."""
    num_layers: int = 4
    """Blocks."""
    width: int = 128
    """Features of the residual stream, D."""
    num_heads: int = 4
    """Query heads, N."""
    num_kv_heads: int = 2
    """Key and value heads, K; each is shared by N / K query heads."""
    head_dim: int = 32
    """Features of a head, H."""
    mlp_width: int = 384
    """Hidden features of the gated MLP, F."""
    rope: Rope = Rope()
    """Rotary embeddings of layers that see everything before them."""
    local_rope: Rope | None = None
    """Rotary embeddings of sliding layers; None for the same."""
    window: int | None = None
    """Tokens that a sliding layer sees, the current one included."""
    sliding: tuple[bool, ...] = ()
    """Which layers slide; () for none."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Of the MLP's gate."""
    qkv_bias: bool = False
    """Biases on queries, keys and values (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm on every query and key head (Qwen3, Gemma 3)."""
    post_norms: bool = False
    """RMSNorm also on what attention and MLP return (Gemma)."""
    norm_offset: float = 0.0
    """Added to every scale of a norm: 1 for Gemma, whose scales are stored around zero."""
    norm_eps: float = 1e-6
    """Epsilon of every norm."""
    attention_scale: float | None = None
    """What scores are multiplied by; None for 1 / sqrt(head_dim)."""
    attention_softcap: float | None = None
    """c in c tanh(score / c) (Gemma 2)."""
    final_softcap: float | None = None
    """The same for logits."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(width) (Gemma)."""
    tied: bool = True
    """The output head is the embedding table."""
    attention: Literal["auto", "own", "cudnn"] = "auto"
    """Which attention trains. own: `jrl.lm.attention.attend`, the fastest on a CPU; cudnn: flash
    attention of NVIDIA GPUs, where half precision is computed in; auto: own on a CPU, cudnn on a
    GPU if it can (half precision, an even number of tokens, head_dim a multiple of 8 up to 128),
    else what jax chooses. With a softcap it is always our own."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes anew: nothing, all but matrix products, or whole blocks."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"config.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"config.head_dim must be even for rotations, got {self.head_dim}")
        if len(self.sliding) not in (0, self.num_layers):
            raise ValueError(
                f"config.sliding names {len(self.sliding)} layers, but num_layers={self.num_layers}"
            )
        if any(self.sliding) and self.window is None:
            raise ValueError("config.window must be given: config.sliding has layers that slide")
        for name, rope in (("rope", self.rope), ("local_rope", self.local_rope)):
            if rope is None:
                continue
            if rope.scaling not in ("none", "linear", "llama3"):
                raise ValueError(
                    f"config.{name}.scaling must be one of none, linear, llama3, "
                    f"got {rope.scaling!r}"
                )
            for field in ("theta", "factor"):
                if getattr(rope, field) <= 0:
                    raise ValueError(
                        f"config.{name}.{field} must be positive, got {getattr(rope, field)}"
                    )
        for name, choices in (
            ("activation", ("silu", "gelu_tanh")),
            ("attention", ("auto", "own", "cudnn")),
            ("remat", ("none", "dots", "full")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"config.{name} must be one of {', '.join(choices)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.attention == "cudnn" and self.attention_softcap is not None:
            raise ValueError("config.attention='cudnn' knows no attention_softcap: use 'auto'")
