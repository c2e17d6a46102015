"""Log-probabilities and entropies of tokens from hidden states, never all logits at once.

The logits of a batch, [B, L, V], are by far the largest array of a language model's step: 10 GiB
for 16 x 1024 tokens and a vocabulary of 152 thousand. Here they exist one part of the vocabulary
at a time, in the forward pass and again in the backward pass, which computes them anew.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jrl.types import Array, Float, Int, Scalar

__all__ = ["TokenLogProbs", "next_token_log_probs", "token_log_probs"]

CHUNK = 4096
"""Columns of logits at a time; docs/performance.md has the times of others."""

IMPOSSIBLE = -1e30
"""The logit of columns behind the vocabulary; finite, so that 0 times it is 0."""


class TokenLogProbs(NamedTuple):
    """What a model says about tokens: their log-probabilities, and how sure it was."""

    log_probs_BxL: Float[Array, "B L"]
    """log p(token)."""
    entropies_BxL: Float[Array, "B L"]
    """Entropies of the distributions that the tokens are drawn from, in nats."""


def token_log_probs(
    hidden_BxLxD: Float[Array, "B L D"],
    head_VxD: Float[Array, "V D"],
    targets_BxL: Int[Array, "B L"],
    temperature: Scalar = 1.0,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> TokenLogProbs:
    """Log-probabilities of targets, and entropies, without the array of all logits.

        z = cap(W h) / T,   cap(x) = c tanh(x / c) or x,   p = softmax(z)
        log p_t = z_t - log sum_v exp z_v
        H = -sum_v p_v log p_v

    and backwards, with cotangents a of log p_t and b of H,

        dz_v = a (1{v = t} - p_v) - b p_v (log p_v + H)

    Source: the running maximum and sum, Milakov & Gimelshein 2018, algorithm 3,
    https://arxiv.org/abs/1805.02867; logits that are recomputed backwards, Wijmans et al. 2024,
    section 4, https://arxiv.org/abs/2411.09009; cap, Gemma Team 2024, section 2,
    https://arxiv.org/abs/2408.00118.
    Args: `hidden_BxLxD` [B, L, D] floating, the states after the last norm; `head_VxD` [V, D]
    floating, the output embedding; `targets_BxL` [B, L] integer; `temperature` > 0, may be traced;
    `softcap` > 0 static, None for none; `chunk` static, the most columns of logits at a time.
    Returns: `TokenLogProbs`, float32 (float64 for float64 arguments). The log-probability of a
    target that is not in 0 .. V - 1 is NaN; masked out, it does not spoil the gradient.
    Raises: ValueError for other shapes, and for a temperature, cap or chunk that is not positive.
    Gradients: reverse mode only, of both results by the states, the head and the temperature, in
    their dtypes. All sums are float32; with bfloat16 arguments the gradient of the logits is
    rounded to bfloat16 for the products with states and head, which keeps them fast.
    Memory: logits of [B L, chunk] two or three times, and the gradient of the states in float32.
    A vocabulary without a divisor between V / chunk and twice that costs a padded copy of the head.

    >>> hidden, head = jnp.eye(2)[None], jnp.log(jnp.array([[1.0, 1.0], [3.0, 1.0]]))
    >>> jnp.exp(token_log_probs(hidden, head, jnp.array([[1, 0]])).log_probs_BxL)
    Array([[0.75, 0.5 ]], dtype=float32)
    """
    _check(hidden_BxLxD, head_VxD, targets_BxL, temperature, softcap, chunk)
    dtype = jnp.promote_types(jnp.result_type(hidden_BxLxD, head_VxD), jnp.float32)
    temperature = jnp.asarray(temperature, dtype)
    return _log_probs(softcap, chunk, hidden_BxLxD, head_VxD, targets_BxL, temperature)


def next_token_log_probs(
    hidden_BxLxD: Float[Array, "B L D"],
    head_VxD: Float[Array, "V D"],
    tokens_BxL: Int[Array, "B L"],
    temperature: Scalar = 1.0,
    softcap: float | None = None,
    chunk: int = CHUNK,
) -> TokenLogProbs:
    """`token_log_probs` of the tokens that the states were computed from, each at its own place.

        log_probs[b, t] = log p(tokens[b, t] | tokens[b, :t]),   0 at t = 0

    Source: the chain rule of probability; equations of the rest at `token_log_probs`.
    Args: `tokens_BxL` [B, L] integer; the state at t has seen the tokens up to t, so it is the one
    before that predicts a token. The others as in `token_log_probs`.
    Returns: `TokenLogProbs` in the places of the tokens, the first column 0. In packed rows the
    first token of every further segment is predicted from another text: mask it.
    Raises: ValueError as `token_log_probs`.

    >>> hidden, head = jnp.zeros((1, 3, 4)), jnp.zeros((2, 4))
    >>> next_token_log_probs(hidden, head, jnp.array([[0, 1, 1]])).log_probs_BxL
    Array([[ 0.       , -0.6931472, -0.6931472]], dtype=float32)
    """
    _check(hidden_BxLxD, head_VxD, tokens_BxL, temperature, softcap, chunk)
    shorter = token_log_probs(
        hidden_BxLxD[:, :-1], head_VxD, tokens_BxL[:, 1:], temperature, softcap, chunk
    )
    return TokenLogProbs(*(jnp.pad(x, ((0, 0), (1, 0))) for x in shorter))


def _check(hidden, head, targets, temperature, softcap, chunk):
    if hidden.shape[:2] != targets.shape:
        raise ValueError(f"tokens must be {hidden.shape[:2]} as states are, got {targets.shape}")
    if hidden.shape[-1] != head.shape[-1]:
        raise ValueError(f"head must be [V, {hidden.shape[-1]}] as states are, got {head.shape}")
    for name, x in (("temperature", temperature), ("softcap", softcap), ("chunk", chunk)):
        if isinstance(x, int | float) and not x > 0:
            raise ValueError(f"{name} must be positive, got {x}")


# Parts of the vocabulary, not of the tokens: a part's gradient of the head is then a finished
# product over all tokens (no float32 copy of the head to add to, and on a mesh a part is reduced
# once, not the whole head per slice), and tokens are never cut across a sharded axis. Part i has
# the columns i, i + n, i + 2n, ... so that every device of a sharded vocabulary has its share of
# every part. B and L become one axis inside: the CPU's matrix product transposes a copy of the
# logits otherwise. A sharded B stays sharded, it is the leading factor; a sharded L is gathered
# (states only, never logits).


def _parts(size: int, chunk: int) -> tuple[int, int]:
    """Returns the number of parts and the columns in each, at least `size` together."""
    least = -(-size // chunk)
    n = next((n for n in range(least, 2 * least) if size % n == 0), least)
    return n, -(-size // n)


def _cut(head, chunk):
    n, columns = _parts(head.shape[0], chunk)
    whole = jnp.pad(head, ((0, n * columns - head.shape[0]), (0, 0)))
    return whole.reshape(columns, n, head.shape[1])


def _scores(softcap, size, hidden, parts, i, temperature):
    """Returns z [N, columns] of one part, its derivative by the logits, and the part's rows."""
    rows = jax.lax.dynamic_index_in_dim(parts, i, 1, keepdims=False)
    dtype = temperature.dtype
    scores = jnp.einsum("nd,vd->nv", hidden, rows, preferred_element_type=dtype)
    slope = 1 / temperature
    if softcap is not None:
        share = jnp.tanh(scores / softcap)
        scores, slope = softcap * share, slope * (1 - jnp.square(share))
    scores = scores / temperature
    columns, n, _ = parts.shape
    if columns * n > size:
        scores = jnp.where(jnp.arange(columns)[None] * n + i < size, scores, IMPOSSIBLE)
    return scores, slope, rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_probs(softcap, chunk, hidden, head, targets, temperature) -> TokenLogProbs:
    return _forward(softcap, chunk, hidden, head, targets, temperature)[0]


def _forward(softcap, chunk, hidden, head, targets, temperature):
    parts, size = _cut(head, chunk), head.shape[0]
    n = parts.shape[1]
    states, target = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)

    def body(i, carry):
        # With z_v - top in place of z_v: total = sum_v exp z_v, moment = sum_v z_v exp z_v.
        top, total, moment, chosen = carry
        scores, _, _ = _scores(softcap, size, states, parts, i, temperature)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
        below = scores - new_top[:, None]
        p = jnp.exp(below)
        shift = top - new_top
        scale = jnp.exp(shift)
        moment = scale * (moment + shift * total) + jnp.sum(p * below, axis=-1)
        total = scale * total + jnp.sum(p, axis=-1)
        found = jnp.take_along_axis(scores, (target // n)[:, None], axis=-1, mode="clip")[:, 0]
        return new_top, total, moment, jnp.where(target % n == i, found, chosen)

    zeros = jnp.zeros(target.shape, temperature.dtype)
    start = (zeros + IMPOSSIBLE, zeros, zeros, zeros)
    top, total, moment, chosen = jax.lax.fori_loop(0, n, body, start)
    chosen = jnp.where((target >= 0) & (target < size), chosen, jnp.nan)
    log_total = jnp.log(total)
    entropy = log_total - moment / total
    # Maximum and log total stay apart: in their sum a large logit would round the small total.
    shaped = (x.reshape(targets.shape) for x in (chosen - top - log_total, entropy))
    return TokenLogProbs(*shaped), (hidden, head, targets, temperature, top, log_total, entropy)


def _backward(softcap, chunk, residuals, cotangents):
    hidden, head, targets, temperature, *statistics = residuals
    parts, size = _cut(head, chunk), head.shape[0]
    columns, n, width = parts.shape
    states, target = hidden.reshape(-1, width), targets.reshape(-1, 1)
    top, log_total, entropy = (x[:, None] for x in statistics)
    of_log_prob, of_entropy = (x.reshape(-1, 1) for x in cotangents)
    # The products are taken in the dtype that the forward product had.
    dtype = jnp.result_type(hidden, head)

    def body(i, carry):
        d_states, d_parts, d_temperature = carry
        scores, slope, rows = _scores(softcap, size, states, parts, i, temperature)
        log_p = scores - top - log_total
        hit = jnp.arange(columns)[None] * n + i == target
        d_scores = jnp.where(hit, of_log_prob, 0.0) - jnp.exp(log_p) * (
            of_log_prob + of_entropy * (log_p + entropy)
        )
        d_temperature -= jnp.sum(d_scores * scores)
        d_logits = (d_scores * slope).astype(dtype)
        d_states += jnp.einsum("nv,vd->nd", d_logits, rows, preferred_element_type=d_states.dtype)
        d_rows = jnp.einsum("nv,nd->vd", d_logits, states, preferred_element_type=d_states.dtype)
        d_parts = jax.lax.dynamic_update_index_in_dim(d_parts, d_rows.astype(head.dtype), i, 1)
        return d_states, d_parts, d_temperature

    zero = jnp.zeros_like(temperature)
    start = (jnp.zeros(states.shape, zero.dtype), jnp.zeros_like(parts), zero)
    d_states, d_parts, d_temperature = jax.lax.fori_loop(0, n, body, start)
    d_hidden = d_states.astype(hidden.dtype).reshape(hidden.shape)
    d_head = d_parts.reshape(-1, width)[:size]
    return d_hidden, d_head, None, d_temperature / temperature


_log_probs.defvjp(_forward, _backward)
