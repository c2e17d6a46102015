"""Divergence between two policies: from samples (k1, k2, k3) or exactly, and entropies.

Everywhere KL(p || q) = E_{x ~ p}[log p(x) - log q(x)]: p is the policy that drew the samples and
that is trained, q the reference. As a *number* k1, k2 and k3 all estimate KL(p || q). As a *loss*,
differentiated through `log_probs` on samples of p itself, they are three different things:

    E[grad k1] = 0                     it trains nothing
    E[grad k2] = grad KL(p || q)       the gradient that a KL penalty means
    E[grad k3] = grad KL(q || p)       the other divergence

so that a penalty in a loss wants `kl_k2` or, for k3's value with k2's gradient, `kl_k3_plus`.
"""

import math

import chex
import jax
import jax.numpy as jnp

from jrl.types import Array, Float

__all__ = [
    "categorical_entropy",
    "categorical_kl",
    "gaussian_entropy",
    "gaussian_kl",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_k3_plus",
]


def kl_k1(
    log_probs: Float[Array, "*batch"], ref_log_probs: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The plain estimator: `k1 = log p(x) - log q(x)`; unbiased, often negative.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    Args: log-probabilities of the same samples under p and q, [*batch] floating.
    Returns: [*batch]. Gradient in `log_probs`: 1, the score function, of expectation zero: for
    rewards, not for losses. Raises: AssertionError for unequal shapes or integers.

    >>> kl_k1(jnp.array([-1.0]), jnp.array([-1.5]))
    Array([0.5], dtype=float32)
    """
    chex.assert_equal_shape([log_probs, ref_log_probs])
    chex.assert_type([log_probs, ref_log_probs], float)
    return log_probs - ref_log_probs


def kl_k2(
    log_probs: Float[Array, "*batch"], ref_log_probs: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Half of the squared log-ratio: `k2 = (log p(x) - log q(x))^2 / 2`; biased, never negative.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    Args: log-probabilities of the same samples under p and q, [*batch] floating.
    Returns: [*batch]. Gradient in `log_probs`: k1, whose score-function expectation is the
    gradient of KL(p || q). Raises: AssertionError for unequal shapes or integers.

    >>> kl_k2(jnp.array([-1.0]), jnp.array([-1.5]))
    Array([0.125], dtype=float32)
    """
    return 0.5 * jnp.square(kl_k1(log_probs, ref_log_probs))


def kl_k3(
    log_probs: Float[Array, "*batch"], ref_log_probs: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Unbiased and never negative: `k3 = (rho - 1) - log rho`, with `rho = q(x) / p(x)`.

    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html; the penalty of GRPO, Shao et al.
    2024, eq. 4, https://arxiv.org/abs/2402.03300.
    Args: log-probabilities of the same samples under p and q, [*batch] floating.
    Returns: [*batch]. Gradient in `log_probs`: 1 - rho, whose expectation is the gradient of
    KL(q || p). Raises: AssertionError for unequal shapes or integers.
    Deviation: no clamp on the log-ratio (verl clamps it to +-20 and the result to +-10).

    >>> f"{kl_k3(jnp.array(-1.0), jnp.array(-1.5)):.4f}"  # exp(-0.5) - 1 + 0.5
    '0.1065'
    """
    return _expm1_minus(-kl_k1(log_probs, ref_log_probs))


def kl_k3_plus(
    log_probs: Float[Array, "*batch"], ref_log_probs: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The value of k3 with the gradient of k2: `k2 - sg(k2) + sg(k3)`.

    Source: verl's "k3+"; that k2 is the loss with the right gradient, Liu et al. 2025,
    https://arxiv.org/abs/2510.01555.
    Args: log-probabilities of the same samples under p and q, [*batch] floating.
    Returns: [*batch]. Gradient in `log_probs`: k1, the right one for a KL(p || q) penalty.
    Raises: AssertionError for unequal shapes or integers.

    >>> jax.grad(kl_k3_plus)(jnp.float32(-1.0), jnp.float32(-1.5))
    Array(0.5, dtype=float32)
    """
    k2 = kl_k2(log_probs, ref_log_probs)
    k3 = kl_k3(log_probs, ref_log_probs)
    return (k2 - jax.lax.stop_gradient(k2)) + jax.lax.stop_gradient(k3)


def categorical_kl(
    logits_p: Float[Array, "*batch A"], logits_q: Float[Array, "*batch A"]
) -> Float[Array, "*batch"]:
    """Exact divergence of two categoricals: `KL(p || q) = sum_a p_a (log p_a - log q_a)`.

    Source: Kullback & Leibler 1951, https://doi.org/10.1214/aoms/1177729694.
    Args: unnormalised logits [*batch, A] floating; -inf forbids a choice.
    Returns: [*batch], where a choice forbidden in p adds nothing and one forbidden only in q
    gives inf; differentiable in both. Raises: AssertionError for unequal shapes or integers.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> f"{categorical_kl(p, q):.4f}"  # (log 2 + log 2/3) / 2
    '0.1438'
    """
    chex.assert_equal_shape([logits_p, logits_q])
    chex.assert_type([logits_p, logits_q], float)
    log_p = jax.nn.log_softmax(logits_p, axis=-1)
    log_q = jax.nn.log_softmax(logits_q, axis=-1)
    # The difference is replaced before it meets p = 0: 0 * nan would reach the gradient.
    possible = log_p > -jnp.inf
    ratio = jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)
    return jnp.sum(jnp.exp(log_p) * ratio, axis=-1)


def categorical_entropy(logits: Float[Array, "*batch A"]) -> Float[Array, "*batch"]:
    """Entropy of a categorical in nats: `H(p) = -sum_a p_a log p_a`.

    Source: Shannon 1948, https://doi.org/10.1002/j.1538-7305.1948.tb01338.x.
    Args: unnormalised logits [*batch, A] floating; -inf forbids a choice, which adds nothing.
    Returns: [*batch]. Raises: AssertionError for integers.

    >>> categorical_entropy(jnp.zeros(2))
    Array(0.6931472, dtype=float32)
    """
    chex.assert_type(logits, float)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0), axis=-1)


def gaussian_kl(
    mean_p: Float[Array, "*batch D"],
    log_std_p: Float[Array, "*batch D"],
    mean_q: Float[Array, "*batch D"],
    log_std_q: Float[Array, "*batch D"],
) -> Float[Array, "*batch"]:
    """Exact divergence of two Gaussians with diagonal covariance, summed over dimensions.

        KL(p || q) = sum_d [log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2]

    Source: Kullback & Leibler 1951, https://doi.org/10.1214/aoms/1177729694, for normals.
    Args: means and logarithms of standard deviations [*batch, D] floating.
    Returns: [*batch], never negative. Raises: AssertionError for unequal shapes or integers.

    >>> one = jnp.ones(1)
    >>> gaussian_kl(2 * one, 0 * one, one, 0 * one)
    Array(0.5, dtype=float32)
    """
    chex.assert_equal_shape([mean_p, log_std_p, mean_q, log_std_q])
    chex.assert_type([mean_p, log_std_p, mean_q, log_std_q], float)
    scale = _expm1_minus(2 * (log_std_p - log_std_q))
    shift = jnp.square((mean_p - mean_q) * jnp.exp(-log_std_q))
    return 0.5 * jnp.sum(scale + shift, axis=-1)


def gaussian_entropy(log_std: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
    """Differential entropy of a diagonal Gaussian: `H = sum_d [log s_d + log(2 pi e) / 2]`.

    Source: Shannon 1948, section 20, https://doi.org/10.1002/j.1538-7305.1948.tb01338.x.
    Args: logarithms of standard deviations [*batch, D] floating. Returns: [*batch].
    Raises: AssertionError for integers.

    >>> gaussian_entropy(jnp.zeros(1))
    Array(1.4189385, dtype=float32)
    """
    chex.assert_type(log_std, float)
    return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)


def _expm1_minus(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    # exp(x) - 1 - x loses every digit near zero in float32, and may turn out negative there.
    return jnp.expm1(x) - x
