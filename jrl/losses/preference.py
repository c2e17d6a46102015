"""Learning from preferences: Bradley-Terry reward models, DPO and IPO, and the closed form behind.

Two kinds of shapes: losses over pairs are elementwise on `[*batch]`, with log-probabilities summed
over the tokens of a response; the closed-form pieces work on a finite set of responses, the last
axis Y of `[*batch, Y]`, where `ref_log_probs` is normalised (a log-softmax).

    max_pi  E_{y ~ pi}[r(x, y)] - beta KL(pi || pi_ref)
    pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x)
    r(x, y)  = beta log(pi*(y|x) / pi_ref(y|x)) + beta log Z(x)

A preference is a difference of two rewards, in which beta log Z cancels: hence DPO.
"""

import chex
import jax
import jax.numpy as jnp

from jrl.types import Array, Float, Scalar

__all__ = [
    "bradley_terry_log_prob",
    "bradley_terry_loss",
    "dpo_loss",
    "implicit_reward",
    "ipo_loss",
    "kl_penalized_reward",
    "log_partition",
    "optimal_log_probs",
    "reward_of_policy",
    "rlhf_objective",
]


def bradley_terry_log_prob(
    reward_chosen: Float[Array, "*batch"], reward_rejected: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probability that the first is preferred: `log p(w > l) = log sigmoid(r_w - r_l)`.

    Source: Bradley & Terry 1952; Rafailov et al. 2023, eq. 1, https://arxiv.org/abs/2305.18290.
    Args: rewards of the two responses, [*batch] floating. Returns: [*batch].
    Raises: AssertionError for unequal shapes or integers.

    >>> bradley_terry_log_prob(jnp.array([1.0]), jnp.array([1.0]))
    Array([-0.6931472], dtype=float32)
    """
    chex.assert_equal_shape([reward_chosen, reward_rejected])
    chex.assert_type([reward_chosen, reward_rejected], float)
    return jax.nn.log_sigmoid(reward_chosen - reward_rejected)


def bradley_terry_loss(
    reward_chosen: Float[Array, "*batch"],
    reward_rejected: Float[Array, "*batch"],
    margin: Float[Array, "*batch"] | Scalar = 0.0,
    centering: Scalar = 0.0,
) -> Float[Array, "*batch"]:
    """Negative log-likelihood of a preference, by which a reward model is trained.

        l = -log sigmoid(r_w - r_l - margin) + centering (r_w + r_l)^2

    Source: Rafailov et al. 2023, eq. 2 (L_R), https://arxiv.org/abs/2305.18290; the margin,
    Touvron et al. 2023, eq. 2, https://arxiv.org/abs/2307.09288; the centering, Eisenstein et al.
    2023, https://arxiv.org/abs/2312.09244, which pins the constant that preferences leave free.
    Args: rewards [*batch] floating; `margin` >= 0, by which the rewards should differ, per pair
    or one for all; `centering` >= 0 (0.01 is common). Returns: [*batch].
    Raises: AssertionError for unequal shapes or integers.

    >>> bradley_terry_loss(jnp.array([2.0]), jnp.array([-2.0]), margin=4.0, centering=0.5)
    Array([0.6931472], dtype=float32)
    """
    chex.assert_equal_shape([reward_chosen, reward_rejected])
    chex.assert_type([reward_chosen, reward_rejected], float)
    chex.assert_rank(margin, {0, reward_chosen.ndim})
    chex.assert_rank(centering, 0)
    likelihood = bradley_terry_log_prob(reward_chosen - margin, reward_rejected)
    return centering * jnp.square(reward_chosen + reward_rejected) - likelihood


def implicit_reward(
    log_probs: Float[Array, "*batch"], ref_log_probs: Float[Array, "*batch"], beta: Scalar
) -> Float[Array, "*batch"]:
    """The reward that a policy is optimal for, up to a constant per prompt.

        r(x, y) = beta log(pi(y|x) / pi_ref(y|x))

    Source: Rafailov et al. 2023, section 4, https://arxiv.org/abs/2305.18290; `reward_of_policy`
    adds the constant.
    Args: log-probabilities of the same responses, summed over tokens, [*batch] floating;
    `beta` > 0. Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.

    >>> implicit_reward(jnp.array([-1.0]), jnp.array([-3.0]), 0.5)
    Array([1.], dtype=float32)
    """
    chex.assert_equal_shape([log_probs, ref_log_probs])
    chex.assert_type([log_probs, ref_log_probs], float)
    chex.assert_rank(beta, 0)
    return beta * (log_probs - ref_log_probs)


def dpo_loss(
    chosen_log_probs: Float[Array, "*batch"],
    rejected_log_probs: Float[Array, "*batch"],
    ref_chosen_log_probs: Float[Array, "*batch"],
    ref_rejected_log_probs: Float[Array, "*batch"],
    beta: Scalar,
    label_smoothing: Scalar = 0.0,
) -> Float[Array, "*batch"]:
    """Direct preference optimisation: Bradley-Terry of the implicit rewards.

        h = beta log(pi(y_w) / pi_ref(y_w)) - beta log(pi(y_l) / pi_ref(y_l))
        l = -(1 - e) log sigmoid(h) - e log sigmoid(-h)

    Source: Rafailov et al. 2023, eq. 7, https://arxiv.org/abs/2305.18290; conservative label
    smoothing, Mitchell 2023, eq. 3, https://ericmitchell.ai/cdpo.pdf.
    Args: log-probabilities summed over the tokens of a response, [*batch] floating; `beta` > 0;
    `label_smoothing` e in [0, 1/2], the chance that the label is wrong. Only differences from the
    reference matter: over long responses sum those of the tokens (`masked_sum`) and give zeros for
    the reference, for the difference of two sums in float32 may have the wrong sign.
    Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.
    Deviation: none; TRL's "sigmoid" accepts a label smoothing and ignores it.

    >>> zero, two = jnp.array([0.0]), jnp.array([2.0])
    >>> dpo_loss(two, zero, two, zero, beta=0.1)  # the policy is the reference: log 2
    Array([0.6931472], dtype=float32)
    """
    chosen = implicit_reward(chosen_log_probs, ref_chosen_log_probs, beta)
    rejected = implicit_reward(rejected_log_probs, ref_rejected_log_probs, beta)
    chex.assert_rank(label_smoothing, 0)
    right = bradley_terry_log_prob(chosen, rejected)
    wrong = bradley_terry_log_prob(rejected, chosen)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def ipo_loss(
    chosen_log_probs: Float[Array, "*batch"],
    rejected_log_probs: Float[Array, "*batch"],
    ref_chosen_log_probs: Float[Array, "*batch"],
    ref_rejected_log_probs: Float[Array, "*batch"],
    beta: Scalar,
) -> Float[Array, "*batch"]:
    """Identity preference optimisation: the log-ratio is fitted to a gap instead of pushed.

        l = (log(pi(y_w) / pi_ref(y_w)) - log(pi(y_l) / pi_ref(y_l)) - 1 / (2 beta))^2

    Source: Azar et al. 2024, eq. 17 (with tau = beta), https://arxiv.org/abs/2310.12036.
    Args: as `dpo_loss`. Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.
    Deviation: none; OpenRLHF sums as here. TRL and AReaL normalise by length, with each response's
    own: for that give `masked_mean(log_probs, mask, -1)` for all four in place of sums.

    >>> zero, one = jnp.array([0.0]), jnp.array([1.0])
    >>> ipo_loss(one, zero, zero, zero, beta=0.25)
    Array([1.], dtype=float32)
    """
    chosen = implicit_reward(chosen_log_probs, ref_chosen_log_probs, 1.0)
    rejected = implicit_reward(rejected_log_probs, ref_rejected_log_probs, 1.0)
    chex.assert_equal_shape([chosen, rejected])
    chex.assert_rank(beta, 0)
    return jnp.square(chosen - rejected - 1 / (2 * beta))


def kl_penalized_reward(
    rewards: Float[Array, "*batch"],
    log_probs: Float[Array, "*batch"],
    ref_log_probs: Float[Array, "*batch"],
    beta: Scalar,
) -> Float[Array, "*batch"]:
    """The reward that RLHF maximises, per sample: `r - beta log(pi / pi_ref)`.

    Source: Ziegler et al. 2019, eq. 2, https://arxiv.org/abs/1909.08593; Rafailov et al. 2023,
    eq. 3, whose mean over samples of pi it estimates (the penalty is k1).
    Args: rewards and log-probabilities of the same samples (responses, or tokens when the reward
    is placed on tokens), [*batch] floating; `beta` >= 0. Returns: [*batch], behind no
    stop-gradient. Raises: AssertionError for unequal shapes or integers.

    >>> kl_penalized_reward(jnp.array([1.0]), jnp.array([-1.0]), jnp.array([-3.0]), 0.25)
    Array([0.5], dtype=float32)
    """
    chex.assert_equal_shape([rewards, log_probs, ref_log_probs])
    chex.assert_type(rewards, float)
    return rewards - implicit_reward(log_probs, ref_log_probs, beta)


def rlhf_objective(
    rewards: Float[Array, "*batch Y"],
    log_probs: Float[Array, "*batch Y"],
    ref_log_probs: Float[Array, "*batch Y"],
    beta: Scalar,
) -> Float[Array, "*batch"]:
    """The exact objective over a finite set: `J = E_{y ~ pi}[r] - beta KL(pi || pi_ref)`.

    Source: Rafailov et al. 2023, eq. 3, https://arxiv.org/abs/2305.18290.
    Args: rewards and normalised, finite log-probabilities of all responses, [*batch, Y] floating;
    `beta` >= 0. Returns: [*batch], to be maximised; at most `beta log_partition`.
    Raises: AssertionError for unequal shapes or integers.

    >>> half = jnp.log(jnp.array([0.5, 0.5]))
    >>> rlhf_objective(jnp.array([1.0, 2.0]), half, half, 0.1)
    Array(1.5, dtype=float32)
    """
    reward = kl_penalized_reward(rewards, log_probs, ref_log_probs, beta)
    return jnp.sum(jnp.exp(log_probs) * reward, axis=-1)


def log_partition(
    rewards: Float[Array, "*batch Y"], ref_log_probs: Float[Array, "*batch Y"], beta: Scalar
) -> Float[Array, "*batch"]:
    """The normaliser of the optimal policy: `log Z = log sum_y pi_ref(y) exp(r(y) / beta)`.

    Source: Rafailov et al. 2023, eq. 4, https://arxiv.org/abs/2305.18290.
    Args: rewards and normalised log-probabilities, [*batch, Y] floating (-inf allowed in the
    latter); `beta` > 0. Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.

    >>> half = jnp.log(jnp.array([0.5, 0.5]))
    >>> log_partition(jnp.array([0.0, jnp.log(3.0)]), half, 1.0)  # log of (1 + 3) / 2
    Array(0.6931472, dtype=float32)
    """
    return jax.nn.logsumexp(_tilted(rewards, ref_log_probs, beta), axis=-1)


def optimal_log_probs(
    rewards: Float[Array, "*batch Y"], ref_log_probs: Float[Array, "*batch Y"], beta: Scalar
) -> Float[Array, "*batch Y"]:
    """The policy that maximises `rlhf_objective`: `log pi* = log pi_ref + r / beta - log Z`.

    Source: Rafailov et al. 2023, eq. 4, https://arxiv.org/abs/2305.18290; Peters & Schaal 2007.
    Args: rewards and normalised log-probabilities, [*batch, Y] floating; `beta` > 0.
    Returns: [*batch, Y], normalised. Raises: AssertionError for unequal shapes or integers.

    >>> half = jnp.log(jnp.array([0.5, 0.5]))
    >>> jnp.exp(optimal_log_probs(jnp.array([0.0, jnp.log(3.0)]), half, 1.0))
    Array([0.25, 0.75], dtype=float32)
    """
    return jax.nn.log_softmax(_tilted(rewards, ref_log_probs, beta), axis=-1)


def reward_of_policy(
    log_probs: Float[Array, "*batch Y"],
    ref_log_probs: Float[Array, "*batch Y"],
    log_z: Float[Array, "*batch"],
    beta: Scalar,
) -> Float[Array, "*batch Y"]:
    """The reward that a policy is optimal for: `r = beta log(pi* / pi_ref) + beta log Z`.

    Source: Rafailov et al. 2023, eq. 5, https://arxiv.org/abs/2305.18290.
    Args: log-probabilities [*batch, Y] and `log_z` [*batch] floating; `beta` > 0.
    Returns: [*batch, Y], the inverse of `optimal_log_probs` where `log_z` is `log_partition`.
    Raises: AssertionError for other shapes or integers.

    >>> half, skew = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> reward_of_policy(skew, half, jnp.log(2.0), 1.0)  # 0 and log 3
    Array([0.       , 1.0986123], dtype=float32)
    """
    chex.assert_shape(log_probs, (*log_z.shape, None))
    chex.assert_type(log_z, float)
    return implicit_reward(log_probs, ref_log_probs, beta) + beta * log_z[..., None]


def _tilted(rewards, ref_log_probs, beta):
    chex.assert_equal_shape([rewards, ref_log_probs])
    chex.assert_type([rewards, ref_log_probs], float)
    chex.assert_rank(beta, 0)
    return ref_log_probs + rewards / beta
