"""Finite Markov decision processes as arrays, and the environment made from one.

    T[i, j, k] = p(s_{t+1} = i | s_t = j, a_t = k),   r[j, k] = E[r | s_t = j, a_t = k]

The index order of `T` is that of the lecture, next state first. Terminal states are absorbing and
pay nothing, and a mask names them: so every sum over time may run on past the end. A process whose
reward depends on where a step lands also holds `outcome[i, j, k]`; then `r` is its expectation
under `T`, and the environment pays `outcome`. The discount belongs to the question asked, not to
the process: it is an argument of the functions in `jrl.tabular`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box, Discrete
from jrl.types import Array, Float, Int, Key, Leaf

__all__ = [
    "Params",
    "State",
    "TabularMDP",
    "accumulate",
    "as_environment",
    "draw",
    "make_mdp",
    "make_params",
]


class TabularMDP(struct.PyTreeNode):
    """`transition` f32[S', S, A], `reward` f32[S, A], `initial` f32[S], `terminal` bool[S].

    `outcome` is f32[S', S, A], or None where the reward does not depend on the next state.
    """

    transition: Leaf
    reward: Leaf
    initial: Leaf
    terminal: Leaf
    outcome: Leaf = None

    @property
    def num_states(self) -> int:
        """The number of states, terminal ones included."""
        return self.reward.shape[-2]

    @property
    def num_actions(self) -> int:
        """The number of actions, the same in every state."""
        return self.reward.shape[-1]


class Params(struct.PyTreeNode):
    """What a step reads: cumulative probabilities f32[S, A, S'] and f32[S], rewards, the mask.

    `rewards` is f32[S, A], or f32[S', S, A] where the reward depends on the next state.
    """

    cumulative: Leaf
    start: Leaf
    rewards: Leaf
    terminal: Leaf
    max_steps_in_episode: Leaf = math.inf


class State(struct.PyTreeNode):
    """The state's number and the steps taken."""

    index: Leaf
    time: Leaf


def accumulate(probabilities: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """Prepares distributions for `draw`: cumulative sums, with impossible outcomes set to 0.

    >>> accumulate(jnp.array([0.25, 0.0, 0.75]))
    Array([0.25, 0.  , 1.  ], dtype=float32)
    """
    # Zeroing the impossible outcomes keeps the rounding of a parallel sum from ever drawing them,
    # and dividing by the largest entry keeps the last possible one at exactly 1.
    totals = jnp.where(probabilities > 0, jnp.cumsum(probabilities, -1), 0.0)
    return totals / totals.max(-1, keepdims=True)


def draw(
    cumulative: Float[Array, "*batch N"], uniform: Float[Array, "*batch"]
) -> Int[Array, "*batch"]:
    """Turns a uniform number in [0, 1) into the outcome it falls on, int32[*batch].

    >>> int(draw(accumulate(jnp.array([0.25, 0.0, 0.75])), jnp.array(0.25)))
    2
    """
    return jnp.argmax(cumulative > uniform[..., None], -1).astype(jnp.int32)


def reset(key: Key, params: Params) -> tuple[Array, State]:
    """Draws the first state from the initial distribution."""
    index = draw(params.start, jax.random.uniform(key))
    return index, State(index, jnp.int32(0))


def step(key: Key, state: State, action: Array, params: Params) -> Step:
    """Draws the next state with one uniform number, by inverting the cumulative distribution."""
    following = draw(params.cumulative[state.index, action], jax.random.uniform(key))
    # The rank is a shape, so this branch is taken at trace time.
    if params.rewards.ndim == 3:
        reward = params.rewards[following, state.index, action]
    else:
        reward = params.rewards[state.index, action]
    state = State(following, state.time + 1)
    truncated = state.time >= params.max_steps_in_episode
    return following, state, reward, params.terminal[following], truncated, {}


def observation_space(params: Params) -> Discrete:
    """Returns the states."""
    return Discrete(params.terminal.shape[-1])


def one_hot_space(params: Params) -> Box:
    """Returns the box that the one-hot observations live in."""
    return Box(0.0, 1.0, params.terminal.shape[-1:])


def action_space(params: Params) -> Discrete:
    """Returns the actions."""
    return Discrete(params.cumulative.shape[-2])


def make_mdp(
    transition: Leaf,
    reward: Leaf,
    initial: Leaf,
    terminal: Leaf | None = None,
) -> TabularMDP:
    """Checks and builds a finite Markov decision process.

    Args: `transition` [S', S, A]; `reward` [S, A], or [S', S, A] where it depends on the next
    state; `initial` [S]; `terminal` bool [S], none by default. Terminal columns of `transition`
    and `reward` are overwritten: whatever the caller wrote there, they become absorbing and pay
    nothing. Probabilities are normalised in float64 before they are stored as float32.

    Raises ValueError when shapes disagree, when a distribution has a negative entry or does not
    sum to one (within 1e-4), when a number is not finite, or when an episode could start in a
    terminal state. The arrays must be concrete; in a trace, build `TabularMDP` itself.

    >>> flip = make_mdp([[[0.0], [1.0]], [[1.0], [0.0]]], [[1.0], [0.0]], [1.0, 0.0])
    >>> flip.num_states, flip.num_actions
    (2, 1)
    """
    transition, reward, initial = (np.array(x, np.float64) for x in (transition, reward, initial))
    _check_shapes(transition, reward, initial)
    states = transition.shape[0]
    terminal = np.zeros(states, bool) if terminal is None else np.array(terminal, bool)
    if terminal.shape != (states,):
        raise ValueError(f"terminal: must have shape ({states},), got {terminal.shape}")
    transition[:, terminal] = np.eye(states)[:, terminal, None]
    reward[..., terminal, :] = 0.0
    _check_distribution("transition", transition)
    _check_distribution("initial", initial)
    if not np.isfinite(reward).all():
        raise ValueError("reward: must be finite, remove NaN and infinity")
    if initial[terminal].any():
        raise ValueError("initial: puts mass on a terminal state, move it to another")
    transition, initial = transition / transition.sum(0), initial / initial.sum()
    expected = (transition * reward).sum(0) if reward.ndim == 3 else reward
    return TabularMDP(
        transition=jnp.asarray(transition, jnp.float32),
        reward=jnp.asarray(expected, jnp.float32),
        initial=jnp.asarray(initial, jnp.float32),
        terminal=jnp.asarray(terminal),
        outcome=jnp.asarray(reward, jnp.float32) if reward.ndim == 3 else None,
    )


def make_params(mdp: TabularMDP, max_steps_in_episode: Leaf = math.inf) -> Params:
    """Lays a process out for stepping: cumulative sums, next state last.

    It is pure, so `jax.vmap(make_params)` of a batch of processes gives a batch of environments'
    parameters.

    >>> mdp = make_mdp([[[0.5], [1.0]], [[0.5], [0.0]]], [[1.0], [0.0]], [1.0, 0.0])
    >>> make_params(mdp).cumulative[0, 0]
    Array([0.5, 1. ], dtype=float32)
    """
    rewards = mdp.reward if mdp.outcome is None else mdp.outcome
    return Params(
        cumulative=accumulate(jnp.moveaxis(mdp.transition, 0, -1)),
        start=accumulate(mdp.initial),
        rewards=rewards,
        terminal=mdp.terminal,
        max_steps_in_episode=max_steps_in_episode,
    )


def as_environment(
    mdp: TabularMDP, max_steps_in_episode: Leaf = math.inf, one_hot: bool = False
) -> Environment:
    """Makes the environment of a process: an observation is the state's number, or one-hot.

    Entering a terminal state terminates; `max_steps_in_episode` truncates. The functions do not
    depend on `mdp`: with `make_params` they run any process, of any size.

    >>> mdp = make_mdp([[[0.0], [0.0]], [[1.0], [1.0]]], [[3.0], [0.0]], [1.0, 0.0], [False, True])
    >>> env = as_environment(mdp)
    >>> _, state = env.reset(jax.random.key(0), env.default_params)
    >>> observation, _, reward, terminated, *_ = env.step(
    ...     jax.random.key(1), state, jnp.int32(0), env.default_params
    ... )
    >>> int(observation), float(reward), bool(terminated)
    (1, 3.0, True)
    """
    params = make_params(mdp, max_steps_in_episode)
    if not one_hot:
        return Environment("Tabular", reset, step, observation_space, action_space, params)

    def encode(index: Array, params: Params) -> Array:
        return jax.nn.one_hot(index, params.terminal.shape[-1])

    def reset_one_hot(key: Key, params: Params) -> tuple[Array, State]:
        index, state = reset(key, params)
        return encode(index, params), state

    def step_one_hot(key: Key, state: State, action: Array, params: Params) -> Step:
        index, state, reward, terminated, truncated, info = step(key, state, action, params)
        return encode(index, params), state, reward, terminated, truncated, info

    return Environment("Tabular", reset_one_hot, step_one_hot, one_hot_space, action_space, params)


def _check_shapes(transition: np.ndarray, reward: np.ndarray, initial: np.ndarray) -> None:
    shape = transition.shape
    if len(shape) != 3 or shape[0] != shape[1] or 0 in shape:
        raise ValueError(f"transition: must have shape [S', S, A] with S' = S, got {shape}")
    if reward.shape not in (shape, shape[1:]):
        raise ValueError(f"reward: must have shape {shape[1:]} or {shape}, got {reward.shape}")
    if initial.shape != shape[:1]:
        raise ValueError(f"initial: must have shape {shape[:1]}, got {initial.shape}")


def _check_distribution(name: str, probabilities: np.ndarray) -> None:
    if not (probabilities >= 0).all():
        raise ValueError(f"{name}: probabilities must be at least 0, got {probabilities.min()}")
    off = np.abs(probabilities.sum(0) - 1)
    if not (off <= 1e-4).all():
        raise ValueError(f"{name}: must sum to one over its first axis, is off by {off.max():.3g}")
