"""Bridge from brax: one of its unwrapped environments as ours.

A brax environment is already a pair of pure functions, of which only the form changes:

    reset(rng) -> State(pipeline_state, obs, reward, done, metrics, info)
    step(State, action) -> State

`done` is a termination; the time limit, which brax keeps in a wrapper, is `params` here. The
metrics become `info`. Source: Freeman et al. 2021, "Brax: a differentiable physics engine for
large scale rigid body simulation", https://arxiv.org/abs/2106.13281.
"""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box
from jrl.types import Array, Key, Leaf, PyTree

__all__ = ["Params", "State", "from_brax", "make"]


class Params(struct.PyTreeNode):
    """The time limit; brax's own default is 1000."""

    max_steps_in_episode: Leaf = 1000


class State(struct.PyTreeNode):
    """brax's state, steps taken."""

    inner: Leaf
    time: Leaf


def from_brax(env: Any, max_steps: int = 1000) -> Environment:
    """Converts a brax environment without brax's wrappers.

    Observations may be any pytree of arrays, and so is then the observation space; actions are
    those of [-1, 1]^n, as brax's environments take them.
    """
    shapes = jax.eval_shape(env.reset, jax.random.key(0))
    if "truncation" in shapes.info:
        raise ValueError("this brax environment has a time limit already: give env.unwrapped")

    def reset(key: Key, params: Params) -> tuple[PyTree, State]:
        inner = env.reset(key)
        return inner.obs, State(inner, jnp.int32(0))

    def step(key: Key, state: State, action: Array, params: Params) -> Step:
        inner = env.step(state.inner, action)
        time = state.time + 1
        truncated = time >= params.max_steps_in_episode
        info = dict(inner.metrics)
        return inner.obs, State(inner, time), inner.reward, inner.done > 0.5, truncated, info

    def observation_space(params: Params) -> PyTree:
        return jax.tree.map(lambda x: Box(-math.inf, math.inf, x.shape), shapes.obs)

    def action_space(params: Params) -> Box:
        return Box(-1.0, 1.0, (env.action_size,))

    name = type(env).__name__
    return Environment(name, reset, step, observation_space, action_space, Params(max_steps))


def make(name: str, max_steps: int = 1000, **kwargs: Any) -> Environment:
    """Makes one of brax's registered environments, for example "ant"; needs brax."""
    try:
        envs = importlib.import_module("brax.envs")
    except ImportError as error:
        raise ImportError("brax environments need brax: pip install brax") from error
    return from_brax(envs.get_environment(name, **kwargs), max_steps)
