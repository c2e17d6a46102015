"""Multi-armed bandits: Bernoulli, Gaussian, linear contextual, drifting and adversarial.

    pull a_t in {0..K-1}, receive r_t with mean m_t(a_t);  info["regret"] = max_a m_t(a) - m_t(a_t)

The regret is that of the pull just made, in expected rewards, so the sum over a run is the exact
(pseudo-)regret without the noise of the rewards. The adversarial bandit has no expectation: its
regret compares with the best single arm of the whole table in hindsight, and single pulls can
have a negative one. Source: Lattimore & Szepesvari 2020, *Bandit Algorithms*, chapters 4, 11, 19,
https://banditalgs.com; the drifting one is exercise 2.5 of Sutton & Barto 2018.

Episodes: a bandit is a Markov decision process without state transitions. By default it runs for
ever (`max_steps_in_episode` truncates it), and a learner that treats it as one long episode needs
discount 0. With `one_step=True` every pull terminates, which makes each pull an episode of length
one: then any discount is right, and any policy-gradient algorithm runs on it as it is.

All five share one shape: `<kind>_params` checks and builds the parameters, `sample_<kind>` draws
a random instance (pure; `vmap` it over keys), `make_<kind>` makes the environment. The number of
arms is a shape, so an environment works with the parameters of any number of arms.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box, Discrete
from jrl.types import Array, Key, Leaf, PyTree, Scalar

__all__ = [
    "AdversarialParams",
    "BernoulliParams",
    "ContextualParams",
    "DriftingParams",
    "GaussianParams",
    "State",
    "adversarial_params",
    "bernoulli_params",
    "contextual_params",
    "drifting_params",
    "gaussian_params",
    "make_adversarial",
    "make_bernoulli",
    "make_contextual",
    "make_drifting",
    "make_gaussian",
    "sample_adversarial",
    "sample_bernoulli",
    "sample_contextual",
    "sample_drifting",
    "sample_gaussian",
]


class BernoulliParams(struct.PyTreeNode):
    """Probability of reward 1, per arm f32[K]."""

    means: Leaf
    max_steps_in_episode: Leaf = math.inf
    one_step: Leaf = False


class GaussianParams(struct.PyTreeNode):
    """Mean reward per arm f32[K] and the standard deviation of every reward."""

    means: Leaf
    noise: Leaf = 1.0
    max_steps_in_episode: Leaf = math.inf
    one_step: Leaf = False


class ContextualParams(struct.PyTreeNode):
    """Weights theta f32[K, D] and the standard deviation of every reward."""

    weights: Leaf
    noise: Leaf = 0.1
    max_steps_in_episode: Leaf = math.inf
    one_step: Leaf = False


class DriftingParams(struct.PyTreeNode):
    """First means f32[K], standard deviations of their walk and of every reward."""

    means: Leaf
    drift: Leaf = 0.01
    noise: Leaf = 1.0
    max_steps_in_episode: Leaf = math.inf
    one_step: Leaf = False


class AdversarialParams(struct.PyTreeNode):
    """Rewards f32[T, K], fixed before the first pull; truncated when the table is used up."""

    rewards: Leaf
    max_steps_in_episode: Leaf = math.inf
    one_step: Leaf = False


class State(struct.PyTreeNode):
    """Pulls so far, and what the next one depends on (context, means, best arm; else None)."""

    time: Leaf
    memory: Leaf = None


def reset_plain(key: Key, params: PyTree) -> tuple[Array, State]:
    """Starts a bandit that remembers nothing."""
    return jnp.ones(1), State(jnp.int32(0))


def step_bernoulli(key: Key, state: State, action: Array, params: BernoulliParams) -> Step:
    """Pays 1 with probability `means[action]`, else 0."""
    reward = (jax.random.uniform(key) < params.means[action]).astype(jnp.float32)
    return _finish(params, state, jnp.ones(1), reward, params.means, action)


def step_gaussian(key: Key, state: State, action: Array, params: GaussianParams) -> Step:
    """Pays `means[action] + noise * N(0, 1)`."""
    reward = params.means[action] + params.noise * jax.random.normal(key)
    return _finish(params, state, jnp.ones(1), reward, params.means, action)


def reset_contextual(key: Key, params: ContextualParams) -> tuple[Array, State]:
    """Draws the first context x ~ N(0, I)."""
    context = jax.random.normal(key, params.weights.shape[-1:])
    return context, State(jnp.int32(0), context)


def step_contextual(key: Key, state: State, action: Array, params: ContextualParams) -> Step:
    """Pays `<weights[action], x> + noise * N(0, 1)` for the context x seen, and draws the next."""
    draws = jax.random.normal(key, (params.weights.shape[-1] + 1,))
    means = params.weights @ state.memory
    reward = means[action] + params.noise * draws[0]
    context = draws[1:]
    return _finish(params, state.replace(memory=context), context, reward, means, action)


def reset_drifting(key: Key, params: DriftingParams) -> tuple[Array, State]:
    """Starts the walk at `params.means`."""
    return jnp.ones(1), State(jnp.int32(0), jnp.asarray(params.means))


def step_drifting(key: Key, state: State, action: Array, params: DriftingParams) -> Step:
    """Pays `m_t(action) + noise * N(0, 1)`; then every mean takes a step `drift * N(0, 1)`."""
    means = state.memory
    draws = jax.random.normal(key, (means.shape[-1] + 1,))
    reward = means[action] + params.noise * draws[0]
    state = state.replace(memory=means + params.drift * draws[1:])
    return _finish(params, state, jnp.ones(1), reward, means, action)


def reset_adversarial(key: Key, params: AdversarialParams) -> tuple[Array, State]:
    """Finds the best arm in hindsight once, so that a step costs O(1)."""
    best = jnp.argmax(params.rewards.sum(0)).astype(jnp.int32)
    return jnp.ones(1), State(jnp.int32(0), best)


def step_adversarial(key: Key, state: State, action: Array, params: AdversarialParams) -> Step:
    """Pays `rewards[t, action]`; the regret compares with the best arm in hindsight."""
    rows = params.rewards.shape[-2]
    row = params.rewards[jnp.minimum(state.time, rows - 1)]
    state = state.replace(time=state.time + 1)
    truncated = (state.time >= params.max_steps_in_episode) | (state.time >= rows)
    info = {"regret": row[state.memory] - row[action]}
    terminated = jnp.asarray(params.one_step, bool)
    return jnp.ones(1), state, row[action], terminated, truncated, info


def _finish(
    params: PyTree, state: State, observation: Array, reward: Array, means: Array, action: Array
) -> Step:
    state = state.replace(time=state.time + 1)
    info = {"regret": jnp.max(means) - means[action]}
    truncated = state.time >= params.max_steps_in_episode
    return observation, state, reward, jnp.asarray(params.one_step, bool), truncated, info


def observation_space(params: PyTree) -> Box:
    """Returns the space of the constant observation (1,), a bias for networks."""
    return Box(1.0, 1.0, (1,))


def context_space(params: ContextualParams) -> Box:
    """Returns the unbounded box of contexts."""
    return Box(-math.inf, math.inf, params.weights.shape[-1:])


def _arms_of(field: str, axis: int):
    def action_space(params: PyTree) -> Discrete:
        return Discrete(jnp.shape(getattr(params, field))[axis])

    return action_space


def bernoulli_params(means: Leaf, **episode: Leaf) -> BernoulliParams:
    """Checks that every mean is a probability; `episode` sets the fields about episodes.

    Raises ValueError unless `means` is [K] with K >= 1 and entries in [0, 1].
    """
    values = _checked("means", means, 1)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"means: must lie in [0, 1], got {values.min()} to {values.max()}")
    return BernoulliParams(jnp.asarray(values), **episode)


def gaussian_params(means: Leaf, noise: float = 1.0, **episode: Leaf) -> GaussianParams:
    """Checks shapes and that `noise` is at least 0 (ValueError)."""
    return GaussianParams(_array("means", means, 1), _scale("noise", noise), **episode)


def contextual_params(weights: Leaf, noise: float = 0.1, **episode: Leaf) -> ContextualParams:
    """Checks that `weights` is [K, D] and `noise` at least 0 (ValueError)."""
    return ContextualParams(_array("weights", weights, 2), _scale("noise", noise), **episode)


def drifting_params(
    means: Leaf, drift: float = 0.01, noise: float = 1.0, **episode: Leaf
) -> DriftingParams:
    """Checks shapes and that `drift` and `noise` are at least 0 (ValueError)."""
    means = _array("means", means, 1)
    return DriftingParams(means, _scale("drift", drift), _scale("noise", noise), **episode)


def adversarial_params(rewards: Leaf, **episode: Leaf) -> AdversarialParams:
    """Checks that `rewards` is a table [T, K] of finite numbers (ValueError)."""
    return AdversarialParams(_array("rewards", rewards, 2), **episode)


def sample_bernoulli(key: Key, num_arms: int) -> BernoulliParams:
    """Draws means from U(0, 1)."""
    _positive("num_arms", num_arms)
    return BernoulliParams(jax.random.uniform(key, (num_arms,)))


def sample_gaussian(key: Key, num_arms: int, spread: Scalar = 1.0) -> GaussianParams:
    """Draws means from N(0, spread^2): the testbed of Sutton & Barto 2018, section 2.3."""
    _positive("num_arms", num_arms)
    return GaussianParams(spread * jax.random.normal(key, (num_arms,)))


def sample_contextual(key: Key, num_arms: int, dimension: int) -> ContextualParams:
    """Draws weights from N(0, I / D), so that mean rewards have unit variance."""
    _positive("num_arms", num_arms)
    _positive("dimension", dimension)
    scale = 1 / math.sqrt(dimension)
    return ContextualParams(scale * jax.random.normal(key, (num_arms, dimension)))


def sample_drifting(key: Key, num_arms: int, spread: Scalar = 0.0) -> DriftingParams:
    """Draws first means from N(0, spread^2): all equal by default, as in S&B exercise 2.5."""
    _positive("num_arms", num_arms)
    return DriftingParams(spread * jax.random.normal(key, (num_arms,)))


def sample_adversarial(
    key: Key, horizon: int, num_arms: int, num_blocks: int = 4
) -> AdversarialParams:
    """Draws a table [T, K] of 0 and 1 whose means, U(0, 1), change at `num_blocks - 1` times."""
    for name, size in ("horizon", horizon), ("num_arms", num_arms), ("num_blocks", num_blocks):
        _positive(name, size)
    draws = jax.random.uniform(key, (horizon + num_blocks, num_arms))
    block = jnp.arange(horizon) * num_blocks // horizon
    return AdversarialParams((draws[num_blocks:] < draws[block]).astype(jnp.float32))


def make_bernoulli(means: Leaf = (0.1, 0.3, 0.5, 0.7, 0.9), **episode: Leaf) -> Environment:
    """Makes a Bernoulli bandit.

    >>> env = make_bernoulli((0.0, 1.0))
    >>> _, state = env.reset(jax.random.key(0), env.default_params)
    >>> loser = jnp.int32(0)
    >>> _, _, reward, *_, info = env.step(jax.random.key(1), state, loser, env.default_params)
    >>> float(reward), float(info["regret"])
    (0.0, 1.0)
    """
    params = bernoulli_params(means, **episode)
    return _make("BernoulliBandit", reset_plain, step_bernoulli, params)


def make_gaussian(
    means: Leaf = (-1.0, -0.5, 0.0, 0.5, 1.0), noise: float = 1.0, **episode: Leaf
) -> Environment:
    """Makes a Gaussian bandit.

    >>> make_gaussian((0.0, 1.0, 2.0)).num_actions
    3
    """
    params = gaussian_params(means, noise, **episode)
    return _make("GaussianBandit", reset_plain, step_gaussian, params)


def make_contextual(
    weights: Leaf = ((1.0, 0.0), (0.0, 1.0), (-1.0, -1.0)),
    noise: float = 0.1,
    **episode: Leaf,
) -> Environment:
    """Makes a linear contextual bandit; the observation is the context.

    >>> env = make_contextual()
    >>> env.reset(jax.random.key(0), env.default_params)[0].shape
    (2,)
    """
    params = contextual_params(weights, noise, **episode)
    return _make("ContextualBandit", reset_contextual, step_contextual, params)


def make_drifting(
    means: Leaf = (0.0,) * 10, drift: float = 0.01, noise: float = 1.0, **episode: Leaf
) -> Environment:
    """Makes a bandit whose means walk at random.

    >>> make_drifting().num_actions
    10
    """
    params = drifting_params(means, drift, noise, **episode)
    return _make("DriftingBandit", reset_drifting, step_drifting, params)


def make_adversarial(rewards: Leaf = ((1.0, 0.0), (1.0, 0.0)), **episode: Leaf) -> Environment:
    """Makes a bandit that pays from a table, the choice of an oblivious adversary.

    >>> env = make_adversarial([[1.0, 0.0], [0.0, 0.5]])
    >>> _, state = env.reset(jax.random.key(0), env.default_params)
    >>> float(env.step(jax.random.key(1), state, jnp.int32(1), env.default_params)[-1]["regret"])
    1.0
    """
    params = adversarial_params(rewards, **episode)
    return _make("AdversarialBandit", reset_adversarial, step_adversarial, params)


def _make(name: str, reset, step, params: PyTree) -> Environment:
    contextual = isinstance(params, ContextualParams)
    space = context_space if contextual else observation_space
    if contextual:
        arms = _arms_of("weights", 0)
    elif isinstance(params, AdversarialParams):
        arms = _arms_of("rewards", 1)
    else:
        arms = _arms_of("means", 0)
    return Environment(name, reset, step, space, arms, params)


def _checked(name: str, values: Leaf, rank: int) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if array.ndim != rank or array.size == 0:
        raise ValueError(f"{name}: must have rank {rank} and no empty axis, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: must be finite, remove NaN and infinity")
    return array


def _array(name: str, values: Leaf, rank: int) -> Array:
    return jnp.asarray(_checked(name, values, rank))


def _scale(name: str, value: float) -> float:
    if not value >= 0:
        raise ValueError(f"{name}: a standard deviation must be at least 0, got {value}")
    return value


def _positive(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name}: must be at least 1, got {size}")
