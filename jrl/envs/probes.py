"""Probes: the smallest tasks with known solutions, each of which can fail in one way only.

A cue c is drawn uniformly, T steps follow, and only the last one, which terminates, is rewarded:

    o_t = observations[t, c],    r_{T-1} = rewards[c, a]   or   -(a - targets[c])^2
    V*(t, c) = gamma^(T-1-t) max_a r(c, a)

| probe | T | what a learner that fails it has wrong |
|---|---|---|
| `constant_value` | 1 | the loss of the value, or the optimizer |
| `observation_value` | 1 | the gradient through the network to its input |
| `discounted_value` | 2 | discounting, bootstrapping, order in time |
| `policy` | 1 | the loss of the policy, or its sign |
| `policy_and_value` | 1 | the pairing of observations with actions and advantages |
| `continuous_policy`, `continuous_policy_and_value` | 1 | the same with continuous actions |
| `memory` | given | carrying, resetting or replaying a recurrent state |

The observation stays as it was after the last step, so bootstrapping past the end shows. Source:
the five probes of Jones 2021, "Debugging RL, without the agonizing pain",
https://andyljones.com/posts/rl-debugging.html; the others extend them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box, Discrete
from jrl.types import Array, Key, Leaf, Scalar

__all__ = [
    "Params",
    "Solution",
    "State",
    "constant_value",
    "continuous_policy",
    "continuous_policy_and_value",
    "discounted_value",
    "memory",
    "observation_value",
    "policy",
    "policy_and_value",
    "solve",
]


class Params(struct.PyTreeNode):
    """What is seen `[T, C, D]`, and either `rewards [C, A]` or continuous `targets [C]`."""

    observations: Leaf
    rewards: Leaf = None
    targets: Leaf = None


class State(struct.PyTreeNode):
    """Index of the cue, steps taken."""

    cue: Leaf
    time: Leaf


def reset(key: Key, params: Params) -> tuple[Array, State]:
    """Draws the cue uniformly."""
    cues = params.observations.shape[1]
    cue = jnp.int32(cues * jax.random.uniform(key))
    state = State(cue, jnp.int32(0))
    return observe(state, params), state


def step(key: Key, state: State, action: Array, params: Params) -> Step:
    """Counts a step; the action matters in the last one."""
    state = State(state.cue, state.time + 1)
    if params.targets is None:
        reward = params.rewards[state.cue, action]
    else:
        reward = -((action[0] - params.targets[state.cue]) ** 2)
    terminated = state.time >= params.observations.shape[0]
    reward = jnp.where(terminated, reward, 0.0)
    return observe(state, params), state, reward, terminated, jnp.bool_(False), {}


def observe(state: State, params: Params) -> Array:
    """Returns the entry of the table `[D]`, the last row once the episode is over."""
    last = params.observations.shape[0] - 1
    return params.observations[jnp.minimum(state.time, last), state.cue]


def observation_space(params: Params) -> Box:
    """Returns the box [-1, 1]^D."""
    return Box(-1.0, 1.0, params.observations.shape[2:])


def action_space(params: Params) -> Discrete | Box:
    """Returns the actions; a continuous one beyond the box is taken as it is."""
    if params.targets is None:
        return Discrete(params.rewards.shape[1])
    return Box((-1.0,), (1.0,), (1,))


class Solution(NamedTuple):
    """What an optimal learner knows at step t after cue c.

    `observation [T, C, D]`, `value [T, C]`, `action [C]` (or `[C, 1]`, continuous) for the last
    step, and `action_value [T, C, A]` (None with continuous actions).
    """

    observation: Array
    value: Array
    action: Array
    action_value: Array | None


def solve(params: Params, gamma: Scalar) -> Solution:
    """Returns the exact solution for a discount `gamma`.

    >>> env = discounted_value()
    >>> solve(env.default_params, 0.5).value.ravel()
    Array([0.5, 1. ], dtype=float32)
    """
    length, cues = params.observations.shape[:2]
    discount = jnp.float32(gamma) ** jnp.arange(length - 1, -1, -1)
    if params.targets is not None:
        value = jnp.zeros((length, cues))
        return Solution(params.observations, value, params.targets[:, None], None)
    value = discount[:, None] * params.rewards.max(1)[None, :]
    waiting = gamma * jnp.broadcast_to(value[1:, :, None], (length - 1, *params.rewards.shape))
    action_value = jnp.concatenate([waiting, params.rewards[None]])
    return Solution(params.observations, value, params.rewards.argmax(1), action_value)


def _make(name: str, observations: list, **outcome: list) -> Environment:
    params = Params(
        jnp.array(observations, jnp.float32),
        **{k: jnp.array(v, jnp.float32) for k, v in outcome.items()},
    )
    return Environment(name, reset, step, observation_space, action_space, params)


def constant_value() -> Environment:
    """Makes the probe of one observation, 0, and the reward 1 whatever is done: V = 1.

    >>> env = constant_value()
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> env.step(jax.random.key(1), state, jnp.int32(0), env.default_params)[2]
    Array(1., dtype=float32)
    """
    return _make("ConstantValue", [[[0]]], rewards=[[1, 1]])


def observation_value() -> Environment:
    """Makes the probe that rewards with what it shows, -1 or 1: V(o) = o."""
    return _make("ObservationValue", [[[-1], [1]]], rewards=[[-1, -1], [1, 1]])


def discounted_value() -> Environment:
    """Makes the probe that shows 0, then 1, then rewards with 1: V(0) = gamma, V(1) = 1."""
    return _make("DiscountedValue", [[[0]], [[1]]], rewards=[[1, 1]])


def policy() -> Environment:
    """Makes the two-armed bandit with rewards -1 and 1: action 1, V = 1."""
    return _make("Policy", [[[0]]], rewards=[[-1, 1]])


def policy_and_value() -> Environment:
    """Makes the probe that shows -1 or 1 and wants action 0 or 1: 1 if right, else -1; V = 1."""
    return _make("PolicyAndValue", [[[-1], [1]]], rewards=[[1, -1], [-1, 1]])


def continuous_policy() -> Environment:
    """Makes the probe that wants the action 0.5, whatever is shown: V = 0."""
    return _make("ContinuousPolicy", [[[0]]], targets=[0.5])


def continuous_policy_and_value() -> Environment:
    """Makes the probe that shows -1 or 1 and wants half of it as action: V = 0."""
    return _make("ContinuousPolicyAndValue", [[[-1], [1]]], targets=[-0.5, 0.5])


def memory(length: int = 4) -> Environment:
    """Makes the probe that shows -1 or 1 first and `length - 1` steps later wants action 0 or 1.

    The observation is (cue or 0, whether to answer now). The answer earns 1 if right, else -1:
    V(t) = gamma^(length-1-t) with a memory, and without one the mean return is 0 at best.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    wait = [[[0, 0], [0, 0]]] * (length - 2)
    observations = [[[-1, 0], [1, 0]], *wait, [[0, 1], [0, 1]]]
    return _make("Memory", observations, rewards=[[1, -1], [-1, 1]])
