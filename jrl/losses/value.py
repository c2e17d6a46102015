"""Losses that fit values: regression, TD errors, categorical and quantile distributions.

One sign convention: `td_error = target - estimate`, the target behind a stop-gradient, so that
moving the estimate along the error reduces it. A loss is `squared_loss` or `huber_loss` of that
error. Every argument may carry any leading axes; nothing is averaged over examples.

Sutton & Barto 2018 is "Reinforcement Learning: An Introduction", second edition,
http://incompleteideas.net/book/the-book-2nd.html.
"""

import chex
import jax
import jax.numpy as jnp

from jrl.types import Array, Float, Int, Scalar

__all__ = [
    "action_advantages",
    "categorical_cross_entropy",
    "categorical_projection",
    "categorical_td_target",
    "clipped_value_loss",
    "double_q_learning_error",
    "expected_sarsa_error",
    "huber_loss",
    "q_learning_error",
    "quantile_huber_loss",
    "quantile_midpoints",
    "sarsa_error",
    "squared_loss",
    "state_value",
    "td_error",
]


def squared_loss(error: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Half of the squared error: `l = error^2 / 2`, whose gradient is the error itself.

    Source: least squares, Legendre 1805; as a loss of values, Sutton & Barto 2018, section 9.3.
    Args: `error` [*batch] floating. Returns: [*batch]. Raises: AssertionError for integers.

    >>> squared_loss(jnp.array([3.0, -1.0]))
    Array([4.5, 0.5], dtype=float32)
    """
    chex.assert_type(error, float)
    return 0.5 * jnp.square(error)


def huber_loss(error: Float[Array, "*batch"], threshold: Scalar = 1.0) -> Float[Array, "*batch"]:
    """Quadratic up to the threshold, linear beyond.

        l = e^2 / 2 if |e| <= k, else k (|e| - k / 2)

    Source: Huber 1964, https://doi.org/10.1214/aoms/1177703732, as in Mnih et al. 2015 (k = 1).
    Args: `error` [*batch] floating; `threshold` k >= 0, where inf gives `squared_loss` exactly.
    Returns: [*batch]. Raises: AssertionError for integers or a threshold that is no scalar.

    >>> huber_loss(jnp.array([0.5, -3.0]), 1.0)
    Array([0.125, 2.5  ], dtype=float32)
    """
    chex.assert_type(error, float)
    chex.assert_rank(threshold, 0)
    size = jnp.abs(error)
    # One product covers both pieces and, unlike k * max(|e| - k, 0), has no inf * 0 at k = inf.
    quadratic = jnp.minimum(size, threshold)
    return quadratic * (size - 0.5 * quadratic)


def clipped_value_loss(
    v_tm1: Float[Array, "*batch"],
    v_old_tm1: Float[Array, "*batch"],
    target_tm1: Float[Array, "*batch"],
    clip: Scalar,
) -> Float[Array, "*batch"]:
    """PPO's value loss: no reward for moving a value further than `clip` from its old estimate.

        l = max((v - G)^2, (clamp(v, v_old - clip, v_old + clip) - G)^2) / 2

    Source: Schulman et al.'s PPO code, described by Engstrom et al. 2020, section 3,
    https://arxiv.org/abs/2005.12729.
    Args: values, old values and return targets [*batch] floating (gradients flow to `v_tm1`
    only); `clip` > 0, where inf gives `squared_loss(target - v)` exactly.
    Returns: [*batch]. Raises: AssertionError for unequal shapes or integers.

    >>> v, old, target = jnp.array([2.0]), jnp.array([1.0]), jnp.array([3.0])
    >>> clipped_value_loss(v, old, target, 0.5)  # the clamped value, 1.5, is further off
    Array([1.125], dtype=float32)
    """
    chex.assert_equal_shape([v_tm1, v_old_tm1, target_tm1])
    chex.assert_type([v_tm1, v_old_tm1, target_tm1], float)
    chex.assert_rank(clip, 0)
    v_old_tm1, target_tm1 = jax.lax.stop_gradient((v_old_tm1, target_tm1))
    clamped = jnp.clip(v_tm1, v_old_tm1 - clip, v_old_tm1 + clip)
    return jnp.maximum(squared_loss(target_tm1 - v_tm1), squared_loss(target_tm1 - clamped))


def state_value(
    q: Float[Array, "*batch A"], probs: Float[Array, "*batch A"]
) -> Float[Array, "*batch"]:
    """The value of a state is the policy's mean action value: `V(s) = sum_a pi(a|s) Q(s, a)`.

    Source: Sutton & Barto 2018, exercise 3.18.
    Args: `q` and `probs` [*batch, A] floating, `probs` summing to one. Returns: [*batch].
    Raises: AssertionError for unequal shapes or integers.

    >>> state_value(jnp.array([1.0, 3.0]), jnp.array([0.75, 0.25]))
    Array(1.5, dtype=float32)
    """
    chex.assert_equal_shape([q, probs])
    chex.assert_type([q, probs], float)
    return jnp.sum(probs * q, axis=-1)


def action_advantages(
    q: Float[Array, "*batch A"], v: Float[Array, "*batch"]
) -> Float[Array, "*batch A"]:
    """How much better each action is than the state: `A(s, a) = Q(s, a) - V(s)`.

    Source: Baird 1993; Schulman et al. 2016, eq. 3, https://arxiv.org/abs/1506.02438.
    Args: `q` [*batch, A] and `v` [*batch] floating. Returns: [*batch, A], with policy mean zero
    when `v = state_value(q, probs)`. Raises: AssertionError for other shapes or integers.

    >>> action_advantages(jnp.array([1.0, 3.0]), jnp.array(1.5))
    Array([-0.5,  1.5], dtype=float32)
    """
    chex.assert_shape(q, (*v.shape, None))
    chex.assert_type([q, v], float)
    return q - v[..., None]


def td_error(
    v_tm1: Float[Array, "*batch"],
    r_t: Float[Array, "*batch"],
    discount_t: Float[Array, "*batch"],
    v_t: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """One-step temporal difference: `delta = sg(r_t + discount_t v_t) - v_tm1`.

    Source: Sutton & Barto 2018, eq. 6.5.
    Args: all [*batch] floating; `discount_t` is zero where the episode terminated.
    Returns: [*batch]; gradients reach `v_tm1` only. Raises: AssertionError for unequal shapes.

    >>> td_error(jnp.array([1.0]), jnp.array([0.5]), jnp.array([0.5]), jnp.array([4.0]))
    Array([1.5], dtype=float32)
    """
    chex.assert_equal_shape([v_tm1, r_t, discount_t, v_t])
    chex.assert_type([v_tm1, r_t, discount_t, v_t], float)
    return jax.lax.stop_gradient(r_t + discount_t * v_t) - v_tm1


def sarsa_error(
    q_tm1: Float[Array, "*batch A"],
    a_tm1: Int[Array, "*batch"],
    r_t: Float[Array, "*batch"],
    discount_t: Float[Array, "*batch"],
    q_t: Float[Array, "*batch A"],
    a_t: Int[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """On-policy control: `delta = sg(r_t + discount_t q_t[a_t]) - q_tm1[a_tm1]`.

    Source: Rummery & Niranjan 1994; Sutton & Barto 2018, eq. 6.7.
    Args: action values [*batch, A], actions [*batch] integer, the rest [*batch] floating.
    Returns: [*batch]; gradients reach `q_tm1` only; NaN for an action beyond A.
    Raises: AssertionError for other shapes or dtypes.

    >>> q, a, r = jnp.array([1.0, 2.0]), jnp.array(0), jnp.array(1.0)
    >>> sarsa_error(q, a, r, jnp.array(0.5), jnp.array([4.0, 8.0]), jnp.array(1))
    Array(4., dtype=float32)
    """
    chex.assert_equal_shape([q_tm1, q_t])
    return td_error(_select(q_tm1, a_tm1), r_t, discount_t, _select(q_t, a_t))


def expected_sarsa_error(
    q_tm1: Float[Array, "*batch A"],
    a_tm1: Int[Array, "*batch"],
    r_t: Float[Array, "*batch"],
    discount_t: Float[Array, "*batch"],
    q_t: Float[Array, "*batch A"],
    probs_t: Float[Array, "*batch A"],
) -> Float[Array, "*batch"]:
    """Sarsa without its sampling noise: `delta = sg(r_t + discount_t pi_t . q_t) - q_tm1[a_tm1]`.

    Source: van Seijen et al. 2009; Sutton & Barto 2018, eq. 6.9.
    Args: as `sarsa_error`, with the policy `probs_t` [*batch, A] in place of the next action.
    Returns: [*batch]; gradients reach `q_tm1` only. Raises: AssertionError for other shapes.

    >>> q, a, r = jnp.array([1.0, 2.0]), jnp.array(0), jnp.array(1.0)
    >>> expected_sarsa_error(q, a, r, jnp.array(0.5), jnp.array([4.0, 8.0]), jnp.array([0.5, 0.5]))
    Array(3., dtype=float32)
    """
    chex.assert_equal_shape([q_tm1, q_t, probs_t])
    return td_error(_select(q_tm1, a_tm1), r_t, discount_t, state_value(q_t, probs_t))


def q_learning_error(
    q_tm1: Float[Array, "*batch A"],
    a_tm1: Int[Array, "*batch"],
    r_t: Float[Array, "*batch"],
    discount_t: Float[Array, "*batch"],
    q_t: Float[Array, "*batch A"],
) -> Float[Array, "*batch"]:
    """Off-policy control: `delta = sg(r_t + discount_t max_a q_t[a]) - q_tm1[a_tm1]`.

    Source: Watkins 1989; Sutton & Barto 2018, eq. 6.8; with a target network for `q_t`,
    Mnih et al. 2015, https://doi.org/10.1038/nature14236.
    Args: as `sarsa_error` without the next action.
    Returns: [*batch]; gradients reach `q_tm1` only. Raises: AssertionError for other shapes.

    >>> q, a, r = jnp.array([1.0, 2.0]), jnp.array(1), jnp.array(1.0)
    >>> q_learning_error(q, a, r, jnp.array(0.5), jnp.array([8.0, 4.0]))
    Array(3., dtype=float32)
    """
    chex.assert_equal_shape([q_tm1, q_t])
    return td_error(_select(q_tm1, a_tm1), r_t, discount_t, jnp.max(q_t, axis=-1))


def double_q_learning_error(
    q_tm1: Float[Array, "*batch A"],
    a_tm1: Int[Array, "*batch"],
    r_t: Float[Array, "*batch"],
    discount_t: Float[Array, "*batch"],
    q_t: Float[Array, "*batch A"],
    q_t_selector: Float[Array, "*batch A"],
) -> Float[Array, "*batch"]:
    """Q-learning whose maximising action comes from other values than its target.

        delta = sg(r_t + discount_t q_t[argmax_a q_t_selector[a]]) - q_tm1[a_tm1]

    Source: van Hasselt, Guez & Silver 2016, eq. 4, https://arxiv.org/abs/1509.06461.
    Args: as `q_learning_error`; `q_t` evaluates (the target network), `q_t_selector` [*batch, A]
    chooses (the online network), the first of equals.
    Returns: [*batch]; gradients reach `q_tm1` only. Raises: AssertionError for other shapes.

    >>> q, a, r, chooser = jnp.array([1.0, 2.0]), jnp.array(1), jnp.array(1.0), jnp.arange(2.0)
    >>> double_q_learning_error(q, a, r, jnp.array(0.5), jnp.array([8.0, 4.0]), chooser)
    Array(1., dtype=float32)
    """
    chex.assert_equal_shape([q_tm1, q_t, q_t_selector])
    chex.assert_type(q_t_selector, float)
    best = _select(q_t, jnp.argmax(q_t_selector, axis=-1))
    return td_error(_select(q_tm1, a_tm1), r_t, discount_t, best)


def categorical_projection(
    atoms: Float[Array, "*batch N"], probs: Float[Array, "*batch N"], support: Float[Array, " M"]
) -> Float[Array, "*batch M"]:
    """Moves probability mass from any atoms to a fixed support, keeping mass and inner mean.

        p'_j = sum_i p_i [1 - |clamp(x_i, z_1, z_M) - z_j| / gap]_0^1

    with `gap` the distance from z_j to its neighbour on the side of x_i: each atom is shared
    between the two support points around it, in inverse proportion to their distances.
    Source: Bellemare, Dabney & Munos 2017, eq. 7, https://arxiv.org/abs/1707.06887; unequal gaps
    as in Barth-Maron et al. 2018, https://arxiv.org/abs/1804.08617.
    Args: `atoms` and their `probs` [*batch, N] floating; `support` [M], M >= 2, increasing.
    Returns: [*batch, M]. Raises: AssertionError for other shapes or M < 2.
    Deviation: memory is N x M per example, where the paper's loop scatters.

    >>> categorical_projection(jnp.array([0.25, 9.0]), jnp.array([0.8, 0.2]), jnp.arange(3.0))
    Array([0.6, 0.2, 0.2], dtype=float32)
    """
    chex.assert_equal_shape([atoms, probs])
    chex.assert_rank(support, 1)
    chex.assert_axis_dimension_gteq(support, 0, 2)
    chex.assert_type([atoms, probs, support], float)
    gap = jnp.diff(support)
    above = jnp.concatenate([gap, gap[-1:]])[:, None]
    below = jnp.concatenate([gap[:1], gap])[:, None]

    def project(x, p):
        distance = jnp.clip(x, support[0], support[-1])[None, :] - support[:, None]
        share = jnp.where(distance >= 0, 1 - distance / above, 1 + distance / below)
        # A product and a sum: a matmul would round to TF32 or bfloat16 on accelerators.
        return jnp.sum(jnp.clip(share, 0, 1) * p[None, :], axis=-1)

    return jnp.vectorize(project, signature="(n),(n)->(m)")(atoms, probs)


def categorical_td_target(
    r_t: Float[Array, "*batch"],
    discount_t: Float[Array, "*batch"],
    probs_t: Float[Array, "*batch M"],
    support: Float[Array, " M"],
) -> Float[Array, "*batch M"]:
    """The projected distribution of `r_t + discount_t Z_t`, where Z_t has `probs_t` on `support`.

    Source: Bellemare, Dabney & Munos 2017, algorithm 1, https://arxiv.org/abs/1707.06887.
    Args: `r_t`, `discount_t` [*batch]; `probs_t` [*batch, M] of the chosen next action;
    `support` [M]. Returns: [*batch, M] behind a stop-gradient. Raises: AssertionError for other
    shapes or integers.

    >>> one, half = jnp.array(1.0), jnp.array(0.5)
    >>> categorical_td_target(one, half, jnp.array([0.0, 1.0, 0.0]), jnp.arange(3.0))
    Array([0. , 0.5, 0.5], dtype=float32)
    """
    chex.assert_equal_shape([r_t, discount_t])
    chex.assert_shape(probs_t, (*r_t.shape, *support.shape))
    chex.assert_type([r_t, discount_t, probs_t, support], float)
    atoms = r_t[..., None] + discount_t[..., None] * jnp.broadcast_to(support, probs_t.shape)
    return jax.lax.stop_gradient(categorical_projection(atoms, probs_t, support))


def categorical_cross_entropy(
    logits_tm1: Float[Array, "*batch M"], target_probs: Float[Array, "*batch M"]
) -> Float[Array, "*batch"]:
    """Cross-entropy from a fixed target distribution: `l = -sum_j sg(p_j) log softmax(logits)_j`.

    Source: Bellemare, Dabney & Munos 2017, algorithm 1, https://arxiv.org/abs/1707.06887.
    Args: finite logits of the taken action and target probabilities, [*batch, M] floating.
    Returns: [*batch]; gradients reach the logits only. Raises: AssertionError for unequal shapes.

    >>> categorical_cross_entropy(jnp.zeros(2), jnp.array([0.25, 0.75]))
    Array(0.6931472, dtype=float32)
    """
    chex.assert_equal_shape([logits_tm1, target_probs])
    chex.assert_type([logits_tm1, target_probs], float)
    log_probs = jax.nn.log_softmax(logits_tm1, axis=-1)
    return -jnp.sum(jax.lax.stop_gradient(target_probs) * log_probs, axis=-1)


def quantile_midpoints(count: int) -> Float[Array, " N"]:
    """The levels that `count` equal quantiles estimate: `tau_i = (2 i - 1) / (2 N)`.

    Source: Dabney et al. 2018, lemma 2, https://arxiv.org/abs/1710.10044.
    Args: `count` N >= 1, static. Returns: [N]. Raises: ValueError for `count` < 1.

    >>> quantile_midpoints(2)
    Array([0.25, 0.75], dtype=float32)
    """
    if count < 1:
        raise ValueError(f"a distribution needs at least one quantile, got {count}")
    return (jnp.arange(count, dtype=float) + 0.5) / count


def quantile_huber_loss(
    quantiles: Float[Array, "*batch N"],
    taus: Float[Array, "*#batch N"],
    targets: Float[Array, "*batch M"],
    threshold: Scalar = 1.0,
) -> Float[Array, "*batch"]:
    """Quantile regression with a Huber core: summed over quantiles, averaged over targets.

        l = sum_i (1/M) sum_j |tau_i - 1{u_ij < 0}| huber(u_ij; k),    u_ij = sg(y_j) - x_i

    Source: Dabney et al. 2018, eq. 10 and algorithm 1, https://arxiv.org/abs/1710.10044.
    Args: estimates x `quantiles` [*batch, N]; their levels `taus` [*batch, N] or one row [N];
    samples or quantiles of the target distribution y `targets` [*batch, M]; `threshold` k >= 0,
    where 0 stands for |u| in place of huber(u), the one that estimates exact quantiles.
    Returns: [*batch]; gradients reach `quantiles` only. Raises: AssertionError for other shapes.
    Deviation: none; IQN (Dabney et al. 2018b, https://arxiv.org/abs/1806.06923, eq. 3) divides by
    k besides, the same number at k = 1.

    >>> quantile_huber_loss(jnp.array([0.0, 2.0]), jnp.array([0.25, 0.75]), jnp.array([1.0]))
    Array(0.25, dtype=float32)
    """
    chex.assert_equal_shape_prefix([quantiles, targets], quantiles.ndim - 1)
    chex.assert_equal_rank([quantiles, targets])
    chex.assert_type([quantiles, taus, targets], float)
    chex.assert_rank(threshold, 0)
    taus = jnp.broadcast_to(taus, quantiles.shape)[..., :, None]
    error = jax.lax.stop_gradient(targets)[..., None, :] - quantiles[..., :, None]
    weight = jnp.where(error < 0, 1 - taus, taus)
    # A threshold may be traced, so that both cores are computed.
    core = jnp.where(jnp.asarray(threshold) > 0, huber_loss(error, threshold), jnp.abs(error))
    return jnp.sum(jnp.mean(weight * core, axis=-1), axis=-1)


def _select(q: Float[Array, "*batch A"], a: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    chex.assert_shape(q, (*a.shape, None))
    chex.assert_type([q, a], [float, int])
    return jnp.take_along_axis(q, a[..., None], axis=-1)[..., 0]
