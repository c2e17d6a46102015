"""Strategies for multi-armed bandits: which arm to pull next, given what the arms have paid.

    regret(T) = sum_{t=1}^T (max_a m_t(a) - m_t(a_t))

A strategy is three pure functions and the default numbers:

    init(num_arms) -> state
    select(key, state, hp) -> action i32
    update(state, action, reward, hp) -> state

`play` runs one on an environment as one `scan`. `vmap` it over keys for many seeds, over `hp` for
hyper-parameters, over `params` for bandits:

    run = functools.partial(play, env, ucb1, params=env.default_params, hp=UCB1Hyper(), horizon=999)
    regrets = jax.jit(jax.vmap(lambda key: run(key=key).regrets))(jax.random.split(key, 1000))

Each select draws one batch of random numbers. Contexts are ignored. Source, unless said otherwise:
Sutton & Barto 2018, chapter 2, http://incompleteideas.net/book/the-book-2nd.html.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jrl import tabular
from jrl.envs.environment import Environment
from jrl.envs.tabular import accumulate, draw
from jrl.types import Array, Float, Int, Key, Leaf, PyTree

__all__ = [
    "EXP3Hyper",
    "EpsilonGreedyHyper",
    "GradientHyper",
    "Play",
    "Strategy",
    "ThompsonBetaHyper",
    "ThompsonGaussianHyper",
    "UCB1Hyper",
    "epsilon_greedy",
    "exp3",
    "gradient",
    "lai_robbins_slope",
    "play",
    "thompson_beta",
    "thompson_gaussian",
    "ucb1",
]


class Strategy(NamedTuple):
    """One strategy: functions of single states, to be `vmap`ped by whoever wants many."""

    name: str
    init: Callable[[int], PyTree]
    select: Callable[..., Array]
    update: Callable[..., PyTree]
    default_hyper: PyTree


class Play(NamedTuple):
    """What happened: rewards f32[T], actions i32[T], regrets f32[T] (of each pull, not summed)."""

    rewards: Float[Array, " T"]
    actions: Int[Array, " T"]
    regrets: Float[Array, " T"]


class EpsilonGreedyHyper(struct.PyTreeNode):
    """Probability of a random arm; the least step size (0: average all rewards alike)."""

    epsilon: Leaf = 0.1
    step_size: Leaf = 0.0


class UCB1Hyper(struct.PyTreeNode):
    """The factor under the root; 2 is that of the theorem, for rewards in [0, 1]."""

    exploration: Leaf = 2.0


class ThompsonBetaHyper(struct.PyTreeNode):
    """The prior Beta(successes, failures) of every mean; (1, 1) is uniform."""

    successes: Leaf = 1.0
    failures: Leaf = 1.0


class ThompsonGaussianHyper(struct.PyTreeNode):
    """The standard deviation of rewards, known, and the prior N(mean, scale^2) of every mean."""

    noise: Leaf = 1.0
    mean: Leaf = 0.0
    scale: Leaf = 1.0


class GradientHyper(struct.PyTreeNode):
    """The step size, and the weight of the baseline: 1 with, 0 without."""

    step_size: Leaf = 0.1
    baseline: Leaf = 1.0


class EXP3Hyper(struct.PyTreeNode):
    """The share gamma of uniform exploration, which is also the learning rate."""

    mixing: Leaf = 0.1


class Arms(struct.PyTreeNode):
    """Pulls f32[K] of every arm and the mean f32[K] of what they paid."""

    pulls: Leaf
    means: Leaf


class Preferences(struct.PyTreeNode):
    """Scores f32[K] (logits or log weights), their distribution, pulls and mean reward so far."""

    scores: Leaf
    probs: Leaf
    pulls: Leaf
    mean: Leaf


def init_arms(num_arms: int) -> Arms:
    """Starts with no pulls. Raises ValueError when `num_arms` is less than 1."""
    if num_arms < 1:
        raise ValueError(f"num_arms: must be at least 1, got {num_arms}")
    return Arms(jnp.zeros(num_arms), jnp.zeros(num_arms))


def init_preferences(num_arms: int) -> Preferences:
    """Starts with equal scores. Raises ValueError when `num_arms` is less than 1."""
    if num_arms < 1:
        raise ValueError(f"num_arms: must be at least 1, got {num_arms}")
    return Preferences(
        jnp.zeros(num_arms), jnp.full(num_arms, 1 / num_arms), jnp.float32(0), jnp.float32(0)
    )


def update_arms(state: Arms, action: Array, reward: Array, hp: PyTree) -> Arms:
    """Averages the rewards of an arm: `m += (r - m) / n` (eq. 2.3)."""
    return _update_arms(state, action, reward, 0.0)


def select_epsilon_greedy(key: Key, state: Arms, hp: EpsilonGreedyHyper) -> Int[Array, ""]:
    """Pulls the best arm so far, ties at random, or with probability epsilon any (section 2.2)."""
    return tabular.epsilon_greedy(key, state.means, hp.epsilon)


def update_epsilon_greedy(
    state: Arms, action: Array, reward: Array, hp: EpsilonGreedyHyper
) -> Arms:
    """Moves the mean by max(1/n, step_size): averages first, then forgets (eq. 2.5)."""
    return _update_arms(state, action, reward, hp.step_size)


def select_ucb1(key: Key, state: Arms, hp: UCB1Hyper) -> Int[Array, ""]:
    """Pulls `argmax_a m_a + sqrt(c ln t / n_a)`, each arm once first; the key is not used.

    Source: Auer, Cesa-Bianchi & Fischer 2002, "Finite-time analysis of the multiarmed bandit
    problem", figure 1, https://doi.org/10.1023/A:1013689704352. Theorem 1: with c = 2 and rewards
    in [0, 1], regret(T) <= 8 sum_a ln T / Delta_a + (1 + pi^2 / 3) sum_a Delta_a.
    """
    width = jnp.sqrt(hp.exploration * jnp.log(state.pulls.sum()) / jnp.maximum(state.pulls, 1.0))
    index = jnp.where(state.pulls > 0, state.means + width, jnp.inf)
    return jnp.argmax(index).astype(jnp.int32)


def select_thompson_beta(key: Key, state: Arms, hp: ThompsonBetaHyper) -> Int[Array, ""]:
    """Draws every mean from its posterior Beta and pulls the best, for rewards 0 or 1.

    Source: Thompson 1933, https://doi.org/10.1093/biomet/25.3-4.285; Agrawal & Goyal 2012,
    algorithm 1, https://arxiv.org/abs/1111.1797.
    """
    won = state.pulls * state.means
    sample = jax.random.beta(key, hp.successes + won, hp.failures + state.pulls - won)
    return jnp.argmax(sample).astype(jnp.int32)


def select_thompson_gaussian(key: Key, state: Arms, hp: ThompsonGaussianHyper) -> Int[Array, ""]:
    """Draws every mean from its posterior normal and pulls the best; the noise is known.

    Source: Russo et al. 2018, "A tutorial on Thompson sampling", section 4,
    https://arxiv.org/abs/1707.02038; the posterior is that of a normal mean with a normal prior.
    """
    prior, data = 1 / hp.scale**2, state.pulls / hp.noise**2
    mean = (prior * hp.mean + data * state.means) / (prior + data)
    sample = mean + jax.random.normal(key, mean.shape) / jnp.sqrt(prior + data)
    return jnp.argmax(sample).astype(jnp.int32)


def select_preferred(key: Key, state: Preferences, hp: PyTree) -> Int[Array, ""]:
    """Draws an arm from the strategy's distribution with one uniform number."""
    return draw(accumulate(state.probs), jax.random.uniform(key))


def update_gradient(
    state: Preferences, action: Array, reward: Array, hp: GradientHyper
) -> Preferences:
    """Ascends E[r] of a softmax: `h_a += alpha (r - b) (1[a = a_t] - pi_a)` (eq. 2.12).

    The baseline b is the mean of the rewards before this one, of the first that reward itself.
    """
    mean = jnp.where(state.pulls > 0, state.mean, reward)
    chosen = jax.nn.one_hot(action, state.probs.shape[-1])
    advantage = reward - hp.baseline * mean
    scores = state.scores + hp.step_size * advantage * (chosen - state.probs)
    pulls = state.pulls + 1.0
    return Preferences(scores, jax.nn.softmax(scores), pulls, mean + (reward - mean) / pulls)


def update_exp3(state: Preferences, action: Array, reward: Array, hp: EXP3Hyper) -> Preferences:
    """Weighs arms by importance: `w_a *= exp(gamma r / (K p_a))` for the pulled one only.

        p = (1 - gamma) w / sum(w) + gamma / K

    Source: Auer, Cesa-Bianchi, Freund & Schapire 2002, "The nonstochastic multiarmed bandit
    problem", figure 1, https://doi.org/10.1137/S0097539701398375. Theorem 3.1: for rewards in
    [0, 1] of any oblivious adversary, G_max - E[G] <= (e - 1) gamma G_max + K ln(K) / gamma.
    Deviations: weights are kept as logarithms, and the first pull is uniform whatever gamma.
    """
    arms = state.probs.shape[-1]
    estimate = reward / state.probs[action]
    scores = state.scores.at[action].add(hp.mixing / arms * estimate)
    probs = (1 - hp.mixing) * jax.nn.softmax(scores) + hp.mixing / arms
    return state.replace(scores=scores, probs=probs)


epsilon_greedy = Strategy(
    "epsilon-greedy",
    init_arms,
    select_epsilon_greedy,
    update_epsilon_greedy,
    EpsilonGreedyHyper(),
)
ucb1 = Strategy("UCB1", init_arms, select_ucb1, update_arms, UCB1Hyper())
thompson_beta = Strategy(
    "Thompson (Beta)", init_arms, select_thompson_beta, update_arms, ThompsonBetaHyper()
)
thompson_gaussian = Strategy(
    "Thompson (Gaussian)",
    init_arms,
    select_thompson_gaussian,
    update_arms,
    ThompsonGaussianHyper(),
)
gradient = Strategy(
    "gradient bandit", init_preferences, select_preferred, update_gradient, GradientHyper()
)
exp3 = Strategy("EXP3", init_preferences, select_preferred, update_exp3, EXP3Hyper())


def play(
    env: Environment, strategy: Strategy, key: Key, params: PyTree, hp: PyTree, horizon: int
) -> Play:
    """Plays one bandit for `horizon` pulls; the sum of `regrets` is the regret of the run.

    Args: `params` of the environment, `hp` of the strategy; the episode's end is ignored. The key
    is consumed. Returns: `Play` of [horizon] arrays. Raises ValueError when `horizon` is less
    than 1.

    >>> from jrl.envs.bandits import make_bernoulli
    >>> env = make_bernoulli((0.0, 1.0))
    >>> result = play(env, ucb1, jax.random.key(0), env.default_params, UCB1Hyper(), 4)
    >>> result.actions.tolist(), float(result.regrets.sum())
    ([0, 1, 1, 1], 1.0)
    """
    if horizon < 1:
        raise ValueError(f"horizon: must be at least 1, got {horizon}")

    def pull(carry, _):
        key, env_state, state = carry
        key, choose, move = jax.random.split(key, 3)
        action = strategy.select(choose, state, hp)
        _, env_state, reward, _, _, info = env.step(move, env_state, action, params)
        state = strategy.update(state, action, reward, hp)
        return (key, env_state, state), Play(reward, action, info["regret"])

    first, key = jax.random.split(key)
    _, env_state = env.reset(first, params)
    start = (key, env_state, strategy.init(env.action_space(params).n))
    return jax.lax.scan(pull, start, None, length=horizon)[1]


def lai_robbins_slope(means: Float[Array, " K"]) -> Float[Array, ""]:
    """Returns c of the least regret `c ln T` of any good strategy on a Bernoulli bandit.

        c = sum_{a : Delta_a > 0} Delta_a / KL(m_a, m*),
        KL(p, q) = p ln(p / q) + (1 - p) ln((1 - p) / (1 - q))

    Source: Lai & Robbins 1985, https://doi.org/10.1016/0196-8858(85)90002-8, theorem 1: no
    strategy whose regret is o(T^b) for all b > 0 on all bandits does better as T grows. Args:
    `means` in (0, 1), [K]. Returns: a scalar.

    >>> round(float(lai_robbins_slope(jnp.array([0.5, 0.25]))), 3)
    1.911
    """
    best = jnp.max(means)
    gaps = best - means
    xlogy = jax.scipy.special.xlogy
    divergence = xlogy(means, means / best) + xlogy(1 - means, (1 - means) / (1 - best))
    return jnp.sum(jnp.where(gaps > 0, gaps / jnp.where(gaps > 0, divergence, 1.0), 0.0))


def _update_arms(state: Arms, action: Array, reward: Array, least: Leaf) -> Arms:
    pulls = state.pulls.at[action].add(1.0)
    step = jnp.maximum(1 / pulls[action], least)
    means = state.means.at[action].add(step * (reward - state.means[action]))
    return Arms(pulls, means)
