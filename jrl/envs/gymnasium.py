"""Bridge from Gymnasium: any vector environment on the host, inside `jit` and `scan`.

The result is a `VectorEnvironment`: arrays have a leading axis of `num_envs`, finished episodes
are followed by new ones in the same step, `info["final_observation"]` is the observation before
that. Every reset and step is one ordered callback for the whole batch, so it runs at the speed of
the host, on one device, and cannot be `vmap`ped or differentiated. The environment itself lives
on the host, so the state is a ticket: the number of calls so far. A state that is not the latest
one is refused, because a host environment cannot be stepped twice from the same state.

Gymnasium's autoreset modes (https://farama.org/Vector-Autoreset-Mode): SAME_STEP is used as it
is, DISABLED by resetting the finished environments with a mask. NEXT_STEP, Gymnasium's default,
is refused: it inserts a step that ignores the action and would be learnt from.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

from jrl.envs.spaces import Box, Discrete, Space
from jrl.envs.wrappers import VectorEnvironment
from jrl.types import Array, Key, Leaf

__all__ = ["State", "from_gymnasium", "make", "seed"]


class State(struct.PyTreeNode):
    """How often the host environment has been called."""

    calls: Leaf


def make(name: str, num_envs: int, **kwargs: Any) -> VectorEnvironment:
    """Makes `num_envs` of a registered environment, stepped in turn; `kwargs` are `make_vec`'s.

    >>> env = make("CartPole-v1", 3)
    >>> observation, state = env.reset(jax.random.key(0), env.default_params)
    >>> action = jnp.ones(3, jnp.int32)
    >>> env.step(jax.random.key(1), state, action, env.default_params)[2]
    Array([1., 1., 1.], dtype=float32)
    """
    gymnasium = _gymnasium()
    options = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    kwargs = {"vectorization_mode": "sync", **kwargs}
    kwargs["vector_kwargs"] = {**options, **kwargs.get("vector_kwargs", {})}
    return from_gymnasium(gymnasium.make_vec(name, num_envs, **kwargs))


def from_gymnasium(env: Any) -> VectorEnvironment:
    """Wraps a `gymnasium.vector.VectorEnv` in mode SAME_STEP or DISABLED.

    It is then this environment's: stepping or resetting it elsewhere goes unnoticed. All randomness
    is the host's, seeded in `reset` by `seed(key)`; the keys of steps are not used.
    """
    host = _Host(env)
    observations, num_envs = _space(env.single_observation_space), env.num_envs
    actions = _space(env.single_action_space)
    observed = jax.ShapeDtypeStruct((num_envs, *observations.shape), observations.dtype)
    calls = jax.ShapeDtypeStruct((), jnp.int32)
    flag = jax.ShapeDtypeStruct((num_envs,), jnp.bool_)
    reward = jax.ShapeDtypeStruct((num_envs,), jnp.float32)

    @_no_vmap
    def host_reset(seed):
        return io_callback(host.reset, (observed, calls), seed, ordered=True)

    @_no_vmap
    def host_step(calls_so_far, action):
        results = (observed, calls, reward, flag, flag, observed)
        return io_callback(host.step, results, calls_so_far, action, ordered=True)

    def reset(key, params):
        observation, calls = host_reset(seed(key))
        return observation, State(calls)

    def advance(noise, state, action, params):
        observation, calls, *rest, final = host_step(state.calls, action)
        return observation, State(calls), *rest, {"final_observation": final}

    return VectorEnvironment(
        name=env.spec.id if env.spec else type(env).__name__,
        num_envs=num_envs,
        reset=reset,
        draw=lambda key, params: key,
        advance=advance,
        observation_space=lambda params: observations,
        action_space=lambda params: actions,
        default_params=(),
    )


def seed(key: Key) -> Array:
    """Returns the seed that `reset` gives the host: environment i has this plus i. Shape []."""
    return (jax.random.bits(key, (), jnp.uint32) >> 1).astype(jnp.int32)


class _Host:
    """The environment and the count of its calls. No jax in here: it would wait for itself."""

    def __init__(self, env):
        modes = _gymnasium().vector.AutoresetMode
        self.env, self.calls = env, 0
        self.mode = env.metadata.get("autoreset_mode")
        if self.mode not in (modes.SAME_STEP, modes.DISABLED):
            raise ValueError(
                f"the autoreset mode must be SAME_STEP or DISABLED, got {self.mode}; pass "
                "vector_kwargs={'autoreset_mode': gymnasium.vector.AutoresetMode.SAME_STEP} "
                "to gymnasium.make_vec"
            )
        self.resets_itself = self.mode == modes.SAME_STEP

    def reset(self, seed):
        observation, _ = self.env.reset(seed=int(np.asarray(seed)))
        return self._observation(observation), self._count()

    def step(self, calls, action):
        if int(np.asarray(calls)) != self.calls:
            raise RuntimeError(
                f"a Gymnasium environment was stepped from the state of its call {int(calls)}, but "
                f"it is at call {self.calls}: use every state once, and none from before a reset"
            )
        action = np.asarray(action).astype(self.env.single_action_space.dtype)
        observation, reward, terminated, truncated, info = self.env.step(action)
        final, done = np.array(observation), terminated | truncated
        if done.any() and self.resets_itself:
            for i in np.flatnonzero(done):
                final[i] = info["final_obs"][i]
        elif done.any():
            observation, _ = self.env.reset(options={"reset_mask": done})
        return (
            self._observation(observation),
            self._count(),
            np.asarray(reward, np.float32),
            np.array(terminated, np.bool_),
            np.array(truncated, np.bool_),
            self._observation(final),
        )

    def _count(self):
        self.calls += 1
        return np.int32(self.calls)

    def _observation(self, observation):
        return np.asarray(observation).astype(_dtype(self.env.single_observation_space.dtype))


def _gymnasium() -> Any:
    try:
        return importlib.import_module("gymnasium")
    except ImportError as error:
        raise ImportError("Gymnasium environments need gymnasium: install jrl[envs]") from error


def _dtype(dtype: Any) -> type:
    # What jax makes of float64 and int64 while they are off: known without asking it on the host.
    return {"float64": np.float32, "int64": np.int32}.get(np.dtype(dtype).name, dtype.type)


def _space(space: Any) -> Space:
    spaces = _gymnasium().spaces
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        low, high = (_bound(bound) for bound in (space.low, space.high))
        return Box(low, high, space.shape, _dtype(space.dtype))
    raise TypeError(f"only Box and Discrete (from 0) spaces are bridged, got {space}")


def _bound(bound: np.ndarray) -> float | tuple:
    first = bound.flat[0]
    if (bound == first).all():
        return float(first)

    def nested(values):
        return tuple(map(nested, values)) if isinstance(values, list) else float(values)

    return nested(bound.tolist())


def _no_vmap(function):
    """An ordered callback has no batch rule: says what to do instead, at trace time."""
    function = custom_vmap(function)

    @function.def_vmap
    def refuse(axis_size, in_batched, *args):
        raise ValueError(
            "an environment from Gymnasium is a batch on the host already and cannot be vmapped: "
            "make it with more environments, or loop over seeds in Python"
        )

    return function
