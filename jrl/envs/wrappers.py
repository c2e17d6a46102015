"""Wrappers as functions from environment to environment, and the batch of environments.

Order from the inside out: `scale_action`, `time_limit`, `episode_statistics`, `vectorize`
(which resets finished environments), then those that share statistics over the batch:
`normalize_observation`, `normalize_reward`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jrl import metrics, rng, tree
from jrl.envs.environment import Environment, Step
from jrl.envs.spaces import Box
from jrl.types import Array, Key, Leaf, PyTree, Scalar

__all__ = [
    "VectorEnvironment",
    "auto_reset",
    "clip_action",
    "clipped",
    "episode_statistics",
    "normalize_observation",
    "normalize_reward",
    "scale_action",
    "time_limit",
    "vectorize",
]


class Wrapped(struct.PyTreeNode):
    """The state of a wrapper: its own beside that of the environment inside."""

    inner: Leaf
    own: Leaf


def _raw(env) -> tuple[Callable, Callable]:
    """Returns (reset, step) of an environment, without a gymnax environment's own auto-reset."""
    if not hasattr(env, "step_env"):
        return env.reset, env.step

    def step(key, state, action, params):
        observation, state, reward, terminated, info = env.step_env(key, state, action, params)
        return observation, state, reward, terminated, env.is_truncated(state, params), info

    return env.reset_env, step


def _replace(env, **functions) -> Environment:
    """Makes an `Environment` of `env` (ours or gymnax's) with some functions exchanged."""
    reset, step = _raw(env)
    fields = {
        "name": env.name,
        "reset": reset,
        "step": step,
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "default_params": env.default_params,
    }
    return Environment(**{**fields, **functions})


def auto_reset(env) -> Environment:
    """Starts a new episode in the step that ends one.

    The returned observation is then the first of the new episode and
    `info["final_observation"]` the last of the old one (in every other step: the current one).

    >>> from jrl.envs import cartpole
    >>> env = auto_reset(cartpole.make())
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> info = env.step(jax.random.key(1), state, jnp.int32(1), env.default_params)[-1]
    >>> info["final_observation"].shape
    (4,)
    """
    reset, _ = _raw(env)

    def step(key, state, action, params):
        step_key, reset_key = rng.batch_keys(key, (2,))
        fresh = reset(reset_key, params)
        return _step_or_reset(env, step_key, fresh, state, action, params)

    return _replace(env, step=step)


def _step_or_reset(env, key, fresh, state, action, params) -> Step:
    observation, state, reward, terminated, truncated, info = _raw(env)[1](
        key, state, action, params
    )
    info = {**info, "final_observation": observation}
    done = terminated | truncated
    # An environment may keep its key: states hold jax's own ones, whatever drew them.
    fresh, stepped = rng.portable((fresh, (observation, state)))
    observation, state = tree.select(done, fresh, stepped)
    return observation, state, reward, terminated, truncated, info


def time_limit(env, max_steps: int) -> Environment:
    """Truncates an episode after `max_steps` steps, unless the environment did so before."""
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    inner_reset, inner_step = _raw(env)

    def reset(key, params):
        observation, state = inner_reset(key, params)
        return observation, Wrapped(state, jnp.int32(0))

    def step(key, state, action, params):
        observation, inner, reward, terminated, truncated, info = inner_step(
            key, state.inner, action, params
        )
        time = state.own + 1
        state = Wrapped(inner, time)
        return observation, state, reward, terminated, truncated | (time >= max_steps), info

    return _replace(env, reset=reset, step=step)


def episode_statistics(env) -> Environment:
    """Adds `info["episode_return"]` and `info["episode_length"]` up to and with this step."""
    inner_reset, inner_step = _raw(env)

    def reset(key, params):
        observation, state = inner_reset(key, params)
        return observation, Wrapped(state, (jnp.float32(0), jnp.int32(0)))

    def step(key, state, action, params):
        observation, inner, reward, terminated, truncated, info = inner_step(
            key, state.inner, action, params
        )
        own = (state.own[0] + reward, state.own[1] + 1)
        info = {**info, "episode_return": own[0], "episode_length": own[1]}
        return observation, Wrapped(inner, own), reward, terminated, truncated, info

    return _replace(env, reset=reset, step=step)


def scale_action(env) -> Environment:
    """Maps actions of [-1, 1] linearly onto the bounds of a `Box` action space."""
    space = env.action_space(env.default_params)
    if not hasattr(space, "low"):
        raise ValueError(f"{env.name} has no Box of actions to scale")
    _, inner_step = _raw(env)

    def step(key, state, action, params):
        bounds = env.action_space(params)
        low, high = jnp.asarray(bounds.low), jnp.asarray(bounds.high)
        return inner_step(key, state, low + (action + 1) * (high - low) / 2, params)

    return _replace(
        env, step=step, action_space=lambda params: Box(-1.0, 1.0, space.shape, space.dtype)
    )


class VectorEnvironment(NamedTuple):
    """A batch of environments that reset themselves; every array has a leading batch axis.

    `draw(key, params)` makes all randomness of one step, fresh episodes included, and
    `advance(noise, state, action, params)` is deterministic: a rollout draws for all its steps
    at once, before its scan (the transformation of Ng & Jordan 2000, "PEGASUS",
    https://arxiv.org/abs/1301.3878).
    """

    name: str
    num_envs: int
    reset: Callable[..., tuple[Any, Any]]
    draw: Callable[..., PyTree]
    advance: Callable[..., Step]
    observation_space: Callable[..., Any]
    action_space: Callable[..., Any]
    default_params: PyTree

    def step(self, key: Key, state: PyTree, action: PyTree, params: PyTree) -> Step:
        """Steps every environment once."""
        return self.advance(self.draw(key, params), state, action, params)


def vectorize(env, num_envs: int) -> VectorEnvironment:
    """Makes a batch of `num_envs` environments that reset themselves when an episode ends.

    `env` is one of ours (not auto-resetting) or any gymnax environment as it is.

    >>> from jrl.envs import cartpole
    >>> env = vectorize(cartpole.make(), 3)
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> env.step(jax.random.key(1), state, jnp.ones(3, jnp.int32), env.default_params)[0].shape
    (3, 4)
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    inner_reset, _ = _raw(env)

    def reset(key, params):
        keys = rng.batch_keys(key, (num_envs,))
        return rng.portable(jax.vmap(inner_reset, (0, None))(keys, params))

    def draw(key, params):
        step_keys, reset_keys = rng.batch_keys(key, (2, num_envs))
        return step_keys, jax.vmap(inner_reset, (0, None))(reset_keys, params)

    def advance(noise, state, action, params):
        keys, fresh = noise

        def one(key, fresh, state, action):
            return _step_or_reset(env, key, fresh, state, action, params)

        return jax.vmap(one)(keys, fresh, state, action)

    return VectorEnvironment(
        env.name,
        num_envs,
        reset,
        draw,
        advance,
        env.observation_space,
        env.action_space,
        env.default_params,
    )


def normalize_observation(env: VectorEnvironment, clip: float = 10.0) -> VectorEnvironment:
    """Normalises observations by the running mean and variance of all seen by the batch.

    `state.own` holds the `RunningStatistics`; those of several devices join by `metrics.merge`.
    The final observation of an episode is normalised by the same numbers.
    """

    def reset(key, params):
        observation, state = env.reset(key, params)
        own = metrics.RunningStatistics.zeros(observation.shape[1:])
        own = metrics.update(own, observation)
        return metrics.normalize(own, observation, clip), Wrapped(state, own)

    def advance(noise, state, action, params):
        observation, inner, reward, terminated, truncated, info = env.advance(
            noise, state.inner, action, params
        )
        own = metrics.update(state.own, observation)
        final = metrics.normalize(own, info["final_observation"], clip)
        observation = metrics.normalize(own, observation, clip)
        info = {**info, "final_observation": final}
        return observation, Wrapped(inner, own), reward, terminated, truncated, info

    return env._replace(reset=reset, advance=advance)


def clip_action(env: VectorEnvironment, on: Scalar = 1.0) -> VectorEnvironment:
    """Clips actions to the bounds of a `Box` action space; leaves discrete ones alone.

    `on`, which may be traced, is 1 to clip and 0 to let actions through.
    """

    def advance(noise, state, action, params):
        return env.advance(noise, state, clipped(env.action_space(params), action, on), params)

    return env._replace(advance=advance)


def clipped(space: Any, action: Array, on: Scalar = 1.0) -> Array:
    """Clips actions `[..., *shape]` to the bounds of a `Box`, as `clip_action` does."""
    if not hasattr(space, "low"):
        return action
    bounds = (jnp.asarray(space.low), jnp.asarray(space.high))
    low, high = (jnp.broadcast_to(bound, action.shape) for bound in bounds)
    return jnp.where(on > 0, jnp.clip(action, low, high), action)


def normalize_reward(
    env: VectorEnvironment, gamma: Scalar, clip: float = 10.0, on: Scalar = 1.0
) -> VectorEnvironment:
    """Divides rewards by the running standard deviation of the discounted return so far.

        G_t = gamma (1 - done_{t-1}) G_{t-1} + r_t,   r_t <- clip(r_t / std(G), +-clip)

    The mean is not subtracted: that would change the task. As in OpenAI baselines'
    `VecNormalize` (https://github.com/openai/baselines). `on`, which may be traced, is 1 to divide
    and 0 to let rewards through.
    """

    def reset(key, params):
        observation, state = env.reset(key, params)
        own = (metrics.RunningStatistics.zeros(), jnp.zeros(env.num_envs))
        return observation, Wrapped(state, own)

    def advance(noise, state, action, params):
        observation, inner, reward, terminated, truncated, info = env.advance(
            noise, state.inner, action, params
        )
        statistics, returns = state.own
        returns = gamma * returns + reward
        statistics = metrics.update(statistics, returns)
        scaled = reward * jax.lax.rsqrt(statistics.variance + 1e-8)
        own = (statistics, jnp.where(terminated | truncated, 0.0, returns))
        state = Wrapped(inner, own)
        reward = jnp.where(on > 0, jnp.clip(scaled, -clip, clip), reward)
        return observation, state, reward, terminated, truncated, info

    return env._replace(reset=reset, advance=advance)
