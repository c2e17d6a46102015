"""Policy losses of language models: ratios of tokens or of whole sequences, under a mask.

Token log-probabilities are [*batch, T] and a mask says which tokens the policy chose: not those of
prompts, of tools, and padding. Losses come unreduced, zero outside the mask, where NaN harms
neither values nor gradients; `jrl.losses.aggregation` says what they weigh.
"""

import math
from typing import Literal, get_args

import chex
import jax
import jax.numpy as jnp

from jrl.losses.policy_gradient import clipped_surrogate
from jrl.losses.tokens import sequence_sums
from jrl.types import Array, Bool, Float, Int, Scalar

__all__ = ["cispo_loss", "clipped_token_surrogate", "sequence_log_ratio"]

Level = Literal["token", "sequence"]
Tokens = Float[Array, "*batch T"]
Advantages = Float[Array, "*batch T"] | Float[Array, "*batch"]
Mask = Bool[Array, "*batch T"]
Segments = Int[Array, "*batch T"] | None


def clipped_token_surrogate(
    log_probs: Tokens,
    old_log_probs: Tokens,
    advantages: Advantages,
    mask: Mask,
    eps_low: Scalar = 0.2,
    eps_high: Scalar | None = None,
    dual_clip: Scalar = math.inf,
    level: Level = "token",
    segment_ids: Segments = None,
) -> Tokens:
    """PPO's clipped loss of tokens (GRPO, DAPO), or of sequences (GSPO).

        token     r_t = pi(y_t) / pi_old(y_t)
        sequence  r_t = exp(mean_s log(pi(y_s) / pi_old(y_s))), see `sequence_log_ratio`
        l_t = -min(r_t A_t, clip(r_t, 1 - eps_low, 1 + eps_high) A_t), bounded by -dual_clip A_t
              where A_t < 0

    Source: `clipped_surrogate`, which it is on the tokens of the mask; GRPO, Shao et al. 2024,
    eq. 3, https://arxiv.org/abs/2402.03300; GSPO, Zheng et al. 2025, section 4,
    https://arxiv.org/abs/2507.18071, whose epsilons are 3e-4 and 4e-4.
    Args: log-probabilities now and when sampled [*batch, T] floating; `advantages` [*batch, T], or
    [*batch] for one per row, constant; `mask` [*batch, T] bool; `eps_low`, `eps_high` (None for
    the same) and `dual_clip` > 1 (inf for off, as in TRL and Tunix; 3 in verl) as in
    `clipped_surrogate`; `level` static; `segment_ids` [*batch, T] for packed rows.
    Returns: [*batch, T], zero outside the mask.
    Raises: AssertionError for other shapes or dtypes, ValueError for another level.
    Deviation: none; a ratio saturates as in `clipped_surrogate`, verl clamps log-ratios to +-20.

    >>> new, old = jnp.log(jnp.array([[0.8, 0.4]])), jnp.log(jnp.array([[0.4, 0.4]]))
    >>> mask = jnp.ones((1, 2), bool)
    >>> clipped_token_surrogate(new, old, jnp.ones(1), mask, 0.25)
    Array([[-1.25, -1.  ]], dtype=float32)
    >>> clipped_token_surrogate(new, old, -jnp.ones(1), mask, 0.25, level="sequence").round(3)
    Array([[1.414, 1.414]], dtype=float32)
    """
    log_ratio, advantages = _masked(log_probs, old_log_probs, advantages, mask)
    if level not in get_args(Level):
        raise ValueError(f"level must be one of {', '.join(get_args(Level))}, got {level!r}")
    if level == "sequence":
        log_ratio = sequence_log_ratio(log_ratio, mask, segment_ids)
    # Where the advantage is zero so is the loss, whatever the ratio.
    return clipped_surrogate(log_ratio, advantages, eps_low, eps_high, dual_clip)


def sequence_log_ratio(log_ratio: Tokens, mask: Mask, segment_ids: Segments = None) -> Tokens:
    """The mean log-ratio of a sequence on each of its tokens, with the gradient of that token.

        log s_t = sg(mean_s log r_s) + log r_t - sg(log r_t)

    Source: GSPO-token, Zheng et al. 2025, section 4.3, https://arxiv.org/abs/2507.18071, as in
    verl and Tunix. Summed over a sequence of one advantage the gradient is that of GSPO (TRL,
    AReaL), which differentiates the mean; with advantages of their own, tokens keep theirs.
    Args: `log_ratio` of tokens [*batch, T] floating; `mask` [*batch, T] bool; `segment_ids`
    [*batch, T] integer for packed rows.
    Returns: [*batch, T], zero outside the mask. Raises: AssertionError for other shapes or dtypes.

    >>> sequence_log_ratio(jnp.array([1.0, 2.0, 9.0]), jnp.array([True, True, False]))
    Array([1.5, 1.5, 0. ], dtype=float32)
    """
    total = sequence_sums(log_ratio, mask, segment_ids)
    count = sequence_sums(jnp.ones_like(log_ratio), mask, segment_ids)
    mean = jax.lax.stop_gradient(total / jnp.maximum(count, 1))
    log_ratio = jnp.where(mask, log_ratio, 0)
    return jnp.where(mask, mean + (log_ratio - jax.lax.stop_gradient(log_ratio)), 0)


def cispo_loss(
    log_probs: Tokens,
    old_log_probs: Tokens,
    advantages: Advantages,
    mask: Mask,
    eps_low: Scalar = math.inf,
    eps_high: Scalar = 4.0,
) -> Tokens:
    """REINFORCE with clipped importance weights: what is clipped still has a gradient (CISPO).

        l_t = -sg(clip(r_t, 1 - eps_low, 1 + eps_high)) A_t log pi(y_t)

    Source: MiniMax 2025, eq. 4 and 5, https://arxiv.org/abs/2506.13585, which tunes the upper
    bound alone: hence no lower one by default. verl's formula is this, with 0.2 for both. TRL's is
    `min(r_t, epsilon_high)`: its epsilon_high, a ratio, is 1 + `eps_high` here (5, advised by
    Khatri et al. 2025, https://arxiv.org/abs/2510.13786, is the default).
    Args: as `clipped_token_surrogate`; `eps_low` >= 1 for no lower bound.
    Returns: [*batch, T], zero outside the mask. Raises: AssertionError for other shapes or dtypes.

    >>> new, old, mask = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.1])), jnp.ones(1, bool)
    >>> jax.grad(lambda x: cispo_loss(x, old, jnp.ones(1), mask, eps_high=1.0).sum())(new)
    Array([-2.], dtype=float32)
    """
    log_ratio, advantages = _masked(log_probs, old_log_probs, advantages, mask)
    chex.assert_rank([eps_low, eps_high], 0)
    least = jnp.log(jnp.maximum(1.0 - eps_low, 0.0)).astype(log_ratio.dtype)
    most = jnp.log1p(eps_high).astype(log_ratio.dtype)
    weight = jax.lax.stop_gradient(jnp.exp(jnp.clip(log_ratio, least, most)))
    return -weight * advantages * jnp.where(mask, log_probs, 0)


def _masked(log_probs, old_log_probs, advantages, mask):
    """Returns log-ratios and advantages of tokens, zero outside the mask."""
    chex.assert_equal_shape([log_probs, old_log_probs, mask])
    chex.assert_type([log_probs, old_log_probs, advantages, mask], [float, float, float, bool])
    if advantages.ndim < mask.ndim:
        advantages = advantages[..., None]
    chex.assert_shape(advantages, (*mask.shape[:-1], {1, mask.shape[-1]}))
    log_ratio = jnp.where(mask, log_probs - jax.lax.stop_gradient(old_log_probs), 0)
    return log_ratio, jnp.where(mask, jax.lax.stop_gradient(advantages), 0)
