"""Direct alignment beyond `dpo_loss` and `ipo_loss`: robust, hinge, SimPO, ORPO and KTO.

Losses of pairs (or of single responses, KTO), elementwise on [*batch]. Log-probabilities are sums
over the tokens of a response (`masked_sum`), except where they are named means (`masked_mean`):
of those SimPO and ORPO are functions, and with means in place of sums `ipo_loss` and `dpo_loss` are
the length-normalised variants.
"""

import math

import chex
import jax
import jax.numpy as jnp

from jrl.losses.preference import bradley_terry_log_prob, dpo_loss, implicit_reward
from jrl.losses.tokens import masked_mean
from jrl.types import Array, Bool, Float, Scalar

__all__ = [
    "hinge_dpo_loss",
    "kto_baseline",
    "kto_loss",
    "odds_ratio_loss",
    "orpo_loss",
    "robust_dpo_loss",
    "simpo_loss",
]

Elements = Float[Array, "*batch"]


def robust_dpo_loss(
    chosen_log_probs: Elements,
    rejected_log_probs: Elements,
    ref_chosen_log_probs: Elements,
    ref_rejected_log_probs: Elements,
    beta: Scalar,
    label_smoothing: Scalar,
) -> Elements:
    """DPO whose mean over labels flipped with chance e is that over true labels.

        l = (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e)

    with h of `dpo_loss`, which is conservative where this is unbiased.

    Source: Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409; TRL's "robust".
    Args: as `dpo_loss`; `label_smoothing` e in [0, 1/2). Returns: [*batch], unbounded below.
    Raises: AssertionError for unequal shapes or integers.

    >>> zero, one = jnp.zeros(1), jnp.ones(1)
    >>> robust_dpo_loss(one, zero, one, zero, 0.1, 0.25)  # the policy is the reference: log 2
    Array([0.6931472], dtype=float32)
    """
    chex.assert_rank(label_smoothing, 0)
    return dpo_loss(
        chosen_log_probs,
        rejected_log_probs,
        ref_chosen_log_probs,
        ref_rejected_log_probs,
        beta,
        -label_smoothing / (1 - 2 * label_smoothing),
    )


def hinge_dpo_loss(
    chosen_log_probs: Elements,
    rejected_log_probs: Elements,
    ref_chosen_log_probs: Elements,
    ref_rejected_log_probs: Elements,
    beta: Scalar,
) -> Elements:
    """DPO with a hinge: nothing more is gained beyond a margin of one.

        l = max(0, 1 - h),    h of `dpo_loss`

    Source: Zhao et al. 2023 (SLiC), https://arxiv.org/abs/2305.10425, normalised by the reference
    as in Liu et al. 2024 (RSO), https://arxiv.org/abs/2309.06657; TRL's "hinge".
    Args: as `dpo_loss`. Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.

    >>> zero, two = jnp.zeros(1), jnp.full(1, 2.0)
    >>> hinge_dpo_loss(two, zero, zero, zero, beta=0.25)
    Array([0.5], dtype=float32)
    """
    chosen = implicit_reward(chosen_log_probs, ref_chosen_log_probs, beta)
    rejected = implicit_reward(rejected_log_probs, ref_rejected_log_probs, beta)
    chex.assert_equal_shape([chosen, rejected])
    return jax.nn.relu(1 - (chosen - rejected))


def simpo_loss(
    chosen_mean_log_probs: Elements,
    rejected_mean_log_probs: Elements,
    beta: Scalar = 2.0,
    margin: Scalar = 1.0,
    label_smoothing: Scalar = 0.0,
) -> Elements:
    """Simple preference optimisation: mean log-probabilities, a margin, and no reference.

        h = beta (mean log pi(y_w) - mean log pi(y_l)) - margin
        l = -(1 - e) log sigmoid(h) - e log sigmoid(-h)

    Source: Meng et al. 2024, eq. 6, https://arxiv.org/abs/2405.14734 (margin is gamma there); the
    smoothing e, not in the paper, is TRL's.
    Args: log-probabilities *averaged* over the tokens of a response, [*batch] floating; `beta` > 0
    (2 to 10 in the paper); `margin` >= 0; `label_smoothing` in [0, 1/2].
    Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.

    >>> simpo_loss(jnp.array([-1.0]), jnp.array([-1.5]), beta=2.0, margin=1.0)
    Array([0.6931472], dtype=float32)
    """
    chex.assert_rank([beta, margin, label_smoothing], 0)
    chosen, rejected = beta * chosen_mean_log_probs - margin, beta * rejected_mean_log_probs
    right = bradley_terry_log_prob(chosen, rejected)
    wrong = bradley_terry_log_prob(rejected, chosen)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def odds_ratio_loss(chosen_mean_log_probs: Elements, rejected_mean_log_probs: Elements) -> Elements:
    """Makes the odds of one response greater than those of another.

        l = -log sigmoid(log odds(y_w) - log odds(y_l)),    odds = p / (1 - p), p = exp(mean log pi)

    Source: Hong et al. 2024, eq. 7, https://arxiv.org/abs/2403.07691.
    Args: log-probabilities *averaged* over the tokens of a response, [*batch] floating, <= 0.
    Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.
    Deviation: a mean above -1e-7, of infinite odds, counts as that and has no gradient, as in
    Tunix.

    >>> three_quarters, half = jnp.log(jnp.array([0.75])), jnp.log(jnp.array([0.5]))
    >>> odds_ratio_loss(three_quarters, half).round(4)  # -log(3 / (3 + 1))
    Array([0.2877], dtype=float32)
    """
    return -bradley_terry_log_prob(
        _log_odds(chosen_mean_log_probs), _log_odds(rejected_mean_log_probs)
    )


def orpo_loss(
    chosen_mean_log_probs: Elements, rejected_mean_log_probs: Elements, beta: Scalar = 0.1
) -> Elements:
    """Odds-ratio preference optimisation: imitation of the chosen response, and its odds.

        l = -mean log pi(y_w) + beta odds_ratio_loss

    Source: Hong et al. 2024, eq. 6, https://arxiv.org/abs/2403.07691 (lambda there).
    Args: log-probabilities *averaged* over the tokens of a response, [*batch] floating, <= 0;
    `beta` >= 0. Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.
    Deviation: TRL and Tunix imitate the prompt too, and TRL averages over all tokens of the
    batch; for that, add `odds_ratio_loss` to a loss of one's own.

    >>> half = jnp.log(jnp.array([0.5]))
    >>> orpo_loss(half, half, beta=1.0)  # log 2 twice
    Array([1.3862944], dtype=float32)
    """
    chex.assert_rank(beta, 0)
    return -chosen_mean_log_probs + beta * odds_ratio_loss(
        chosen_mean_log_probs, rejected_mean_log_probs
    )


def kto_loss(
    log_probs: Elements,
    ref_log_probs: Elements,
    desirable: Bool[Array, "*batch"],
    baseline: Elements | Scalar,
    beta: Scalar = 0.1,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Elements:
    """Kahneman-Tversky optimisation: single responses, each labelled good or bad.

        l = w_D (1 - sigmoid(beta (log(pi / pi_ref) - z)))    where desirable
        l = w_U (1 - sigmoid(beta (z - log(pi / pi_ref))))    otherwise

    Source: Ethayarajh et al. 2024, section 4.1, https://arxiv.org/abs/2402.01306.
    Args: summed log-probabilities of responses, [*batch] floating; `desirable` [*batch] bool;
    `baseline` z, a column or a number, constant: `kto_baseline`; `beta` > 0; weights >= 0, of
    which the paper wants that of the rarer label greater.
    Returns: [*batch], in 0 .. the weight; its mean counts examples, not weights, as in TRL.
    Raises: AssertionError for other shapes or dtypes.

    >>> two, zero = jnp.full(2, 2.0), jnp.zeros(2)
    >>> kto_loss(two, zero, jnp.array([True, False]), 2.0, undesirable_weight=3.0)
    Array([0.5, 1.5], dtype=float32)
    """
    chex.assert_equal_shape([log_probs, ref_log_probs, desirable])
    chex.assert_type([log_probs, ref_log_probs, desirable], [float, float, bool])
    chex.assert_rank(baseline, {0, log_probs.ndim})
    chex.assert_rank([beta, desirable_weight, undesirable_weight], 0)
    away = beta * (log_probs - ref_log_probs - jax.lax.stop_gradient(baseline))
    weight = jnp.where(desirable, desirable_weight, undesirable_weight).astype(away.dtype)
    return weight * jax.nn.sigmoid(jnp.where(desirable, -away, away))


def kto_baseline(
    log_probs: Float[Array, " B"],
    ref_log_probs: Float[Array, " B"],
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, " B"]:
    """The reference point of `kto_loss`, a batch's divergence, as a column.

        z = max(0, mean_i log(pi(y'_i | x_i) / pi_ref(y'_i | x_i)))

    of *mismatched* responses: those of other prompts, y'_i = y_{i+1} say.

    Source: Ethayarajh et al. 2024, section 4.1, https://arxiv.org/abs/2402.01306.
    Args: summed log-probabilities of the mismatched responses, [B] floating; `mask` [B] bool.
    Returns: [B], one number for all examples, constant (no gradient).
    Raises: AssertionError for other shapes or dtypes.
    It couples examples: compute it over the whole batch in a `prepare`, from the policy before
    the step, and not, as TRL does, over each microbatch.

    >>> kto_baseline(jnp.array([-1.0, -2.0]), jnp.array([-2.0, -1.5]))
    Array([0.25, 0.25], dtype=float32)
    """
    chex.assert_rank(log_probs, 1)
    log_ratio = implicit_reward(log_probs, ref_log_probs, 1.0)
    mask = jnp.ones_like(log_ratio, bool) if mask is None else mask
    mean = jnp.maximum(masked_mean(log_ratio, mask), 0)
    return jax.lax.stop_gradient(jnp.broadcast_to(mean, log_ratio.shape))


def _log_odds(mean_log_probs):
    """log(p / (1 - p)) of p = exp(x), with every digit at both ends."""
    chex.assert_type(mean_log_probs, float)
    x = jnp.minimum(mean_log_probs, -1e-7)
    near_one = x > -math.log(2)
    # Each branch gets an argument that it can bear: a gradient passes through both.
    rest = jnp.where(
        near_one,
        jnp.log(-jnp.expm1(jnp.where(near_one, x, -1.0))),
        jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, x))),
    )
    return x - rest
