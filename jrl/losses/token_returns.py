"""From the reward of a response to the advantages of its tokens: divergence, length, GAE.

Responses are rows [*batch, T]; the mask is true for the tokens that the policy chose. Tokens of
tools and prompts between them are passed over, wherever they stand, and may hold NaN. These are
columns, made in a `prepare(batch)` from numbers of the policy that sampled.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp

from jrl.losses.kl import kl_k1
from jrl.losses.returns import generalized_advantages
from jrl.losses.tokens import reward_at_last_token
from jrl.types import Array, Bool, Float, Scalar

__all__ = [
    "TokenAdvantages",
    "generalized_token_advantages",
    "mask_truncated",
    "overlong_penalty",
    "token_rewards",
]

Tokens = Float[Array, "*batch T"]
Mask = Bool[Array, "*batch T"]


class TokenAdvantages(NamedTuple):
    """Results of `generalized_token_advantages`, [*batch, T]: advantages, targets of the values."""

    advantages: Array
    returns: Array


def token_rewards(
    rewards: Float[Array, "*batch"],
    log_probs: Tokens,
    ref_log_probs: Tokens,
    mask: Mask,
    beta: Scalar,
    kl: Callable[[Tokens, Tokens], Tokens] = kl_k1,
) -> Tokens:
    """The reward of a response on its last token, less the divergence on every token.

        r_t = r 1{t = last} - beta k1_t,    k1_t = log pi(y_t) - log pi_ref(y_t)

    Source: Ziegler et al. 2019, eq. 2, https://arxiv.org/abs/1909.08593, on tokens as in Ouyang et
    al. 2022, section 3.5, https://arxiv.org/abs/2203.02155.
    Args: `rewards` [*batch] floating; log-probabilities of the sampled tokens under the policy
    that sampled and the reference, [*batch, T] floating; `mask` [*batch, T] bool; `beta` >= 0;
    `kl` an estimator of `jrl.losses.kl`. As a reward k1 is right (its sum is the divergence that
    is charged); k3, Tunix's default, has the same mean and charges another thing by the sample.
    Returns: [*batch, T], zero outside the mask; an empty row has nowhere to put its reward.
    Raises: AssertionError for other shapes or dtypes.

    >>> policy, ref = jnp.array([[-1.0, -2.0, 0.0]]), jnp.array([[-2.0, -1.0, 0.0]])
    >>> token_rewards(jnp.array([0.75]), policy, ref, jnp.array([[True, True, False]]), 0.5)
    Array([[-0.5 ,  1.25,  0.  ]], dtype=float32)
    """
    chex.assert_equal_shape([log_probs, ref_log_probs, mask])
    chex.assert_rank(beta, 0)
    placed = reward_at_last_token(rewards, mask)
    log_probs, ref_log_probs = jnp.where(mask, log_probs, 0), jnp.where(mask, ref_log_probs, 0)
    return placed - beta * jnp.where(mask, kl(log_probs, ref_log_probs), 0)


def generalized_token_advantages(
    rewards: Tokens,
    values: Tokens,
    mask: Mask,
    discount: Scalar = 1.0,
    lambda_: Scalar = 1.0,
    bootstrap: Float[Array, "*batch"] | None = None,
) -> TokenAdvantages:
    """GAE along the tokens of responses, carried through those that the policy did not choose.

        delta_t = r_t + discount V' - V_t,    A_t = delta_t + discount lambda A'

    with V' and A' of the next token *of the mask*, and V' = bootstrap, A' = 0 after the last.

    Source: Schulman et al. 2016, eq. 16, https://arxiv.org/abs/1506.02438; the carry is verl's,
    Tunix's and AReaL's (TRL's PPO has none, and takes the value of whatever stands there).
    Args: `rewards` and `values` V(y_<t) [*batch, T] floating; `mask` [*batch, T] bool; `discount`
    and `lambda_` in [0, 1]: verl and AReaL have 1 and 1, TRL and Tunix 1 and 0.95; `bootstrap`
    [*batch], the value after the last token where a response was cut off, None for zeros.
    Returns: `TokenAdvantages(advantages, returns)`, `returns = advantages + values`, zero outside
    the mask. Whiten the advantages afterwards (`masked_whiten`), not the returns.
    Raises: AssertionError for other shapes or dtypes.

    >>> rewards, values = jnp.array([[0.0, 9.0, 1.0]]), jnp.array([[0.5, jnp.nan, 0.25]])
    >>> out = generalized_token_advantages(rewards, values, jnp.array([[True, False, True]]))
    >>> out.advantages
    Array([[0.5 , 0.  , 0.75]], dtype=float32)
    """
    chex.assert_equal_shape([rewards, values, mask])
    chex.assert_type([rewards, values, mask], [float, float, bool])
    chex.assert_rank([discount, lambda_], 0)
    bootstrap = jnp.zeros(mask.shape[:-1], values.dtype) if bootstrap is None else bootstrap
    chex.assert_shape(bootstrap, mask.shape[:-1])
    last = reward_at_last_token(jnp.ones_like(bootstrap), mask) > 0
    following = jnp.concatenate([values[..., 1:], bootstrap[..., None]], axis=-1)
    following = jnp.where(last, bootstrap[..., None], following)
    r_t, v_tm1, v_t, mask_t = (jnp.moveaxis(x, -1, 0) for x in (rewards, values, following, mask))
    discount_t = jnp.full_like(r_t, discount)
    a_t = generalized_advantages(r_t, discount_t, lambda_, v_tm1, v_t, mask_t=mask_t)
    advantages = jnp.moveaxis(a_t, 0, -1)
    return TokenAdvantages(advantages, jnp.where(mask, advantages + values, 0))


def mask_truncated(mask: Mask, truncated: Bool[Array, "*batch"]) -> Mask:
    """Takes the responses that were cut off out of the loss: `m_t 1{not truncated}`.

    Source: the overlong filtering of Yu et al. 2025, section 3.4,
    https://arxiv.org/abs/2503.14476; TRL's `mask_truncated_completions`. It goes into the mask of
    the loss, after the group's advantages: the reward still takes part in those. To penalise
    instead, subtract from the rewards before (`overlong_penalty`, or a constant where truncated);
    AReaL's `mask_no_eos_with_zero` sets them to zero.
    Args: `mask` [*batch, T] bool; `truncated` [*batch] bool, true without an end of sequence.
    Returns: [*batch, T] bool. Raises: AssertionError for other shapes or dtypes.

    >>> mask_truncated(jnp.ones((2, 2), bool), jnp.array([True, False]))
    Array([[False, False],
           [ True,  True]], dtype=bool)
    """
    chex.assert_shape(mask, (*truncated.shape, None))
    chex.assert_type([mask, truncated], bool)
    return mask & ~truncated[..., None]


def overlong_penalty(
    mask: Mask, max_length: int, buffer: int, scale: Scalar = 1.0
) -> Float[Array, "*batch"]:
    """What to add to the reward of a response that is longer than it should be.

        0                                          where n <= max_length - buffer
        -scale (n - (max_length - buffer)) / buffer    up to n = max_length
        -scale                                     beyond

    Source: soft overlong punishment, Yu et al. 2025, eq. 13, https://arxiv.org/abs/2503.14476.
    Args: `mask` [*batch, T] bool, whose true elements are counted: n is a number of *tokens*
    (Tunix counts the characters of the text); `max_length` and `buffer` tokens, static;
    `scale` >= 0. Returns: [*batch], not positive.
    Raises: AssertionError for another dtype; ValueError unless 0 < buffer <= max_length.

    >>> mask = jnp.arange(10)[None] < jnp.array([[5], [8], [10]])
    >>> overlong_penalty(mask, max_length=10, buffer=4)
    Array([-0. , -0.5, -1. ], dtype=float32)
    """
    chex.assert_type(mask, bool)
    chex.assert_rank(scale, 0)
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer must be in 1 .. max_length = {max_length}, got {buffer}")
    over = jnp.sum(mask, axis=-1, dtype=jnp.float32) - (max_length - buffer)
    return -scale * jnp.clip(over / buffer, 0.0, 1.0)
