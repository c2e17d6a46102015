"""One decoder-only transformer for Llama 3, Qwen 2 and 3 and the text models of Gemma 2 and 3.

    x <- x + attention(norm(x));  x <- x + mlp(norm(x))

Modules hold parameters only: positions, segment ids and the cache are arguments and results. The
parameters of all layers are stacked along a leading axis and scanned over, so that a deep model
compiles as fast as a shallow one. Everything computes in the dtype of the parameters, but norms,
rotations, softmax, logits and scores are float32.

Axes: B batch, L tokens, D width, N query heads, K key and value heads, H head size, F hidden
features of the MLP, V vocabulary, S length of the cache.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jrl import networks, tree
from jrl.lm.attention import Cache, attend, causal_mask, rotate, write
from jrl.lm.config import Config, frequencies
from jrl.types import Array, Float, Int, Key, Params, PyTree

__all__ = ["Transformer", "init_score_head", "make", "scores", "unstack"]

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}

POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Transformer(NamedTuple):
    """A model as pure functions of its parameters, a nested dict.

    `init(key) -> params`

    `hidden(params, tokens_BxL, positions_BxL=None, segment_ids_BxL=None, cache=None)
    -> (hidden_BxLxD, cache)`: the last features, from which `head(params)` [V, D] makes
    predictions. Positions count from 0 in every row unless given, and by tokens of the same
    segment if packed. Segment 0 is padding. With a cache the tokens are appended to what it
    holds at their positions, which must be given; segments do not go with it. Parameters and a
    cache that are `unstack`ed run layer after layer in place of a scan.

    `logits(params, hidden_BxLxD) -> float32 [B, L, V]`: for a few tokens; `log_probs` has what a
    loss needs without making this array.
    """

    config: Config
    init: Callable[[Key], Params]
    hidden: Callable[..., tuple[Array, Any]]
    head: Callable[[Params], Array]
    logits: Callable[[Params, Array], Array]


class Mask(NamedTuple):
    """Who sees whom; windows are added layer by layer."""

    q_positions_BxL: Array
    k_positions_BxS: Array
    segment_ids_BxL: Array | None


class Layer(NamedTuple):
    """What tells one scanned layer from another, beside its parameters."""

    number: Array
    frequencies: Array
    slides: Array


def _normal(std: float):
    return nnx.initializers.normal(std)


class RMSNorm(nnx.Module):
    """Scales vectors to length sqrt(size): `x / sqrt(mean(x^2) + eps) (offset + scale)`.

    Source: Zhang & Sennrich 2019, eq. 4, https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, size: int, config: Config):
        self.scale = nnx.Param(jnp.full(size, 1.0 - config.norm_offset, jnp.float32))
        self.eps, self.offset = config.norm_eps, config.norm_offset

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalises the last axis in float32."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        scale = self.offset + self.scale[...].astype(jnp.float32)
        return (y * scale.reshape((1,) * (y.ndim - 1) + (-1,))).astype(x.dtype)


class Dense(nnx.Module):
    """A matrix product, with a bias if asked."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, bias=False, scale: float = 1.0):
        init = _normal(scale * inputs**-0.5)
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None

    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        """Maps [..., inputs] to [..., outputs]."""
        # One axis of tokens: XLA's CPU backend transposes a copy of both factors of the kernel's
        # gradient if it is a sum over two, which takes as long as the product.
        y = x.reshape(-1, x.shape[-1]) @ self.kernel[...]
        if self.bias is not None:
            y = y + self.bias[...][None]
        return y.reshape(*x.shape[:-1], -1)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        n, k, h = config.num_heads, config.num_kv_heads, config.head_dim
        self.q = Dense(config.width, n * h, rngs, config.qkv_bias)
        self.k = Dense(config.width, k * h, rngs, config.qkv_bias)
        self.v = Dense(config.width, k * h, rngs, config.qkv_bias)
        self.o = Dense(n * h, config.width, rngs, scale=(2 * config.num_layers) ** -0.5)
        if config.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(h, config), RMSNorm(h, config)
        self.config = config

    def __call__(self, x_BxLxD: Array, mask: Mask, layer: Layer, cache: Cache | None):
        """Returns ([B, L, D], cache)."""
        c = self.config
        b, length, _ = x_BxLxD.shape
        q = self.q(x_BxLxD).reshape(b, length, c.num_heads, c.head_dim)
        k = self.k(x_BxLxD).reshape(b, length, c.num_kv_heads, c.head_dim)
        v = self.v(x_BxLxD).reshape(b, length, c.num_kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, mask.q_positions_BxL, layer.frequencies)
        k = rotate(k, mask.q_positions_BxL, layer.frequencies)
        segments = mask.segment_ids_BxL
        window = c.window if any(c.sliding) else None
        seen = causal_mask(
            mask.q_positions_BxL, mask.k_positions_BxS, segments, segments, window, layer.slides
        )
        scale = c.head_dim**-0.5 if c.attention_scale is None else c.attention_scale
        if cache is not None:
            cache = write(cache, layer.number, mask.q_positions_BxL, k, v)
            k, v = cache.k_layersxBxKxSxH[layer.number], cache.v_layersxBxKxSxH[layer.number]
            y = attend(q, k.astype(q.dtype), v.astype(q.dtype), seen, scale, c.attention_softcap)
        elif _is_own(c):
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            y = attend(q, k, v, seen, scale, c.attention_softcap)
        else:
            y = jax.nn.dot_product_attention(
                q, k, v, mask=seen[:, None], scale=scale, implementation=_implementation(c, q)
            )
        return self.o(y.reshape(b, length, -1)), cache


def _is_own(config: Config) -> bool:
    on_cpu = config.attention == "auto" and jax.default_backend() == "cpu"
    return on_cpu or config.attention == "own" or config.attention_softcap is not None


def _implementation(config: Config, q_BxLxNxH: Array) -> Literal["cudnn"] | None:
    """Which of jax's attentions: left to itself it takes XLA's, on a GPU too."""
    if config.attention == "cudnn":
        return "cudnn"
    length, _, size = q_BxLxNxH.shape[1:]
    half = q_BxLxNxH.dtype in (jnp.float16, jnp.bfloat16)
    # Of odd lengths cuDNN has no gradient, and larger heads only from Hopper on.
    fits = half and length % 2 == 0 and size % 8 == 0 and size <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else None


class MLP(nnx.Module):
    """A gated MLP: `down(activation(gate(x)) up(x))`.

    Source: Shazeer 2020, eq. 6, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.gate = Dense(config.width, config.mlp_width, rngs)
        self.up = Dense(config.width, config.mlp_width, rngs)
        self.down = Dense(
            config.mlp_width, config.width, rngs, scale=(2 * config.num_layers) ** -0.5
        )
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Maps [..., D] to [..., D]."""
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.attention, self.mlp = Attention(config, rngs), MLP(config, rngs)
        self.attention_norm = RMSNorm(config.width, config)
        self.mlp_norm = RMSNorm(config.width, config)
        self.post_norms = config.post_norms
        if config.post_norms:
            self.attention_post_norm = RMSNorm(config.width, config)
            self.mlp_post_norm = RMSNorm(config.width, config)

    def __call__(self, x_BxLxD: Array, mask: Mask, layer: Layer, cache: Cache | None):
        """Returns ([B, L, D], cache)."""
        y, cache = self.attention(self.attention_norm(x_BxLxD), mask, layer, cache)
        x_BxLxD = x_BxLxD + (self.attention_post_norm(y) if self.post_norms else y)
        y = self.mlp(self.mlp_norm(x_BxLxD))
        return x_BxLxD + (self.mlp_post_norm(y) if self.post_norms else y), cache


class Ends(nnx.Module):
    """What stands before and after the blocks."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(_normal(0.02)(rngs.params(), shape, jnp.float32))
        self.norm = RMSNorm(config.width, config)
        if not config.tied:
            init = _normal(config.width**-0.5)
            self.head = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises what leaves the last block."""
        return self.norm(x)


def make(config: Config) -> Transformer:
    """Makes the model of a configuration.

    Its parameters are `{"embedding", "head" (unless tied), "norm": {"scale"}, "layers": {...}}`,
    every array below "layers" with a leading axis of layers. Raises ValueError if the sizes of
    `config` do not fit together.

    >>> model = make(Config(vocab_size=7, num_layers=2))
    >>> params = model.init(jax.random.key(0))
    >>> hidden, _ = model.hidden(params, jnp.array([[1, 2, 3]]))
    >>> model.logits(params, hidden).shape
    (1, 3, 7)
    """
    config.validate()
    init_block, block = networks.functional(lambda rngs: Block(config, rngs))
    init_ends, norm = networks.functional(lambda rngs: Ends(config, rngs))

    def init(key):
        ends_key, layers_key = jax.random.split(key)
        layers = jax.vmap(init_block)(jax.random.split(layers_key, config.num_layers))
        return {**init_ends(ends_key), "layers": layers}

    def hidden(params, tokens_BxL, positions_BxL=None, segment_ids_BxL=None, cache=None):
        mask = _mask(tokens_BxL, positions_BxL, segment_ids_BxL, cache)
        ends = {name: x for name, x in params.items() if name in ("embedding", "norm", "head")}
        x_BxLxD = params["embedding"][tokens_BxL]
        if config.scale_embeddings:
            x_BxLxD = x_BxLxD * jnp.asarray(config.width**0.5, x_BxLxD.dtype)
        x_BxLxD, cache = _blocks(config, block, params["layers"], x_BxLxD, mask, cache)
        return norm(ends, x_BxLxD), cache

    def head(params):
        return params["embedding"] if config.tied else params["head"]

    def logits(params, hidden_BxLxD):
        w_VxD = head(params)
        y = jnp.einsum("bld,vd->blv", hidden_BxLxD, w_VxD, preferred_element_type=jnp.float32)
        c = config.final_softcap
        return y if c is None else c * jnp.tanh(y / c)

    return Transformer(config, init, hidden, head, logits)


def unstack(stacked: PyTree) -> tuple[PyTree, ...]:
    """Cuts the leading axis of layers: `{**params, "layers": unstack(params["layers"])}`.

    A scan copies the parameters and the cache of each layer before it uses them, which a token at a
    time notices. Of a cache it makes a tuple of caches of one layer each.

    >>> unstack({"scale": jnp.arange(2.0)})[1]
    {'scale': Array(1., dtype=float32)}
    """
    layers = range(jax.tree.leaves(stacked)[0].shape[0])
    if isinstance(stacked, Cache):
        return tuple(tree.take(stacked, slice(i, i + 1)) for i in layers)
    return tuple(tree.take(stacked, i) for i in layers)


def init_score_head(key: Key, config: Config) -> Params:
    """Starts the head of a value function or of a reward model: one number for each token.

    It belongs beside the trunk's parameters, for example as `params["value"]`.
    """
    kernel = jax.random.normal(key, (config.width,)) / (config.width + 1) ** 0.5
    return {"kernel": kernel, "bias": jnp.zeros(())}


def scores(head: Params, hidden_BxLxD: Float[Array, "B L D"]) -> Float[Array, "B L"]:
    """Applies a score head: float32 [B, L], one number for what each token and those before say.

    >>> scores({"kernel": jnp.ones(2), "bias": jnp.float32(1)}, jnp.ones((1, 3, 2)))
    Array([[3., 3., 3.]], dtype=float32)
    """
    kernel = head["kernel"]
    y = jnp.einsum("bld,d->bl", hidden_BxLxD, kernel, preferred_element_type=jnp.float32)
    return y + head["bias"].astype(jnp.float32)


def _mask(tokens_BxL, positions_BxL, segment_ids_BxL, cache) -> Mask:
    if cache is not None and positions_BxL is None:
        raise ValueError("positions_BxL must be given with a cache: they say where tokens go")
    if cache is not None and segment_ids_BxL is not None:
        raise ValueError("segment_ids_BxL must be None with a cache: a row is one sequence")
    if positions_BxL is None:
        if segment_ids_BxL is None:
            positions_BxL = jnp.broadcast_to(jnp.arange(tokens_BxL.shape[1]), tokens_BxL.shape)
        else:
            positions_BxL = _positions(segment_ids_BxL)
    if cache is None:
        return Mask(positions_BxL, positions_BxL, segment_ids_BxL)
    length = cache[0].length if isinstance(cache, tuple) else cache.length
    shape = (tokens_BxL.shape[0], length)
    return Mask(positions_BxL, jnp.broadcast_to(jnp.arange(length), shape), None)


def _positions(segment_ids_BxL: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Counts the tokens of every segment of a packed row from 0."""
    index = jnp.broadcast_to(jnp.arange(segment_ids_BxL.shape[1]), segment_ids_BxL.shape)
    begins = jnp.diff(segment_ids_BxL, axis=1, prepend=-1) != 0
    return index - jax.lax.cummax(jnp.where(begins, index, 0), axis=1)


def _blocks(config: Config, block, params: Params, x_BxLxD, mask: Mask, cache):
    """Scans over the layers; the cache is carried, so that each writes into it in place."""
    local = config.rope if config.local_rope is None else config.local_rope
    sliding = config.sliding or (False,) * config.num_layers
    tables = jnp.stack([frequencies(rope, config.head_dim) for rope in (config.rope, local)])
    if isinstance(params, tuple):
        caches = []
        for i, one in enumerate((None,) * len(params) if cache is None else cache):
            layer = Layer(jnp.int32(0), tables[int(sliding[i])], jnp.array(sliding[i]))
            x_BxLxD, one = block(params[i], x_BxLxD, mask, layer, one)
            caches.append(one)
        return x_BxLxD, None if cache is None else tuple(caches)
    slides = jnp.array(sliding)
    layers = Layer(jnp.arange(config.num_layers), tables[slides.astype(int)], slides)

    def body(carry: PyTree, xs):
        return block(xs[0], carry[0], mask, xs[1], carry[1]), None

    if config.remat != "none":
        body = jax.checkpoint(body, policy=POLICIES[config.remat], prevent_cse=False)
    (x_BxLxD, cache), _ = jax.lax.scan(body, (x_BxLxD, cache), (params, layers))
    return x_BxLxD, cache
