"""What a task knows of a physics engine: start a state, step it, read it.

    start(physics, qpos, qvel, ...) -> PhysicsState     pure jax
    physics.step(state, ctrl) -> PhysicsState           the engine: native.py, host.py or mjx.py

Everything above (observations, rewards, terminations, resets) is the same for every engine.

MuJoCo computes in float64 and jax, as most people run it, in float32. A state therefore carries
the doubles themselves, as pairs of 32-bit words which no arithmetic touches: a trajectory is
bit for bit the one that MuJoCo alone computes. What a task reads is the float32 of each double
and the float32 of what that left out, so that the small difference of two large positions, a
velocity, keeps its digits.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jrl.types import Array, Float, Leaf

__all__ = [
    "Model",
    "Physics",
    "PhysicsState",
    "Readings",
    "doubles",
    "engine_module",
    "load",
    "share_of_cores",
    "start",
    "words",
]


class PhysicsState(struct.PyTreeNode):
    """One simulation between two steps."""

    exact: Leaf
    """What the engine goes on from: for MuJoCo qpos, qvel, qacc_warmstart as words [2 n] u32."""
    high: Leaf
    """The readings, one after the other, [m] f32."""
    low: Leaf
    """What rounding the readings to float32 left out, [m] f32."""


class Readings:
    """The readings of one state by the names of MuJoCo's fields, in their shapes, f32."""

    def __init__(self, state: PhysicsState, layout: dict[str, tuple[int, ...]]):
        self._state, self._layout = state, layout

    def __getitem__(self, name: str) -> Array:
        """Returns a field, for example `x["qpos"]`."""
        return self._take(self._state.high, name)

    def since(self, before: "Readings", name: str) -> Array:
        """Returns how far a field has moved, to the precision of the doubles."""
        now, then = self._state, before._state
        return self._take((now.high - then.high) + (now.low - then.low), name)

    def _take(self, flat: Array, name: str) -> Array:
        start = 0
        for field, shape in self._layout.items():
            size = int(np.prod(shape))
            if field == name:
                return flat[start : start + size].reshape(shape)
            start += size
        raise KeyError(f"{name} is not read: add it to the task's fields")


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A compiled MuJoCo model and what of its data a task reads; shared by all engines."""

    mj: Any
    """`mujoco.MjModel`."""
    fields: tuple[str, ...]
    """Names of fields of `mujoco.MjData`."""
    layout: dict[str, tuple[int, ...]]
    frame_skip: int
    """Steps of the engine for one of the environment."""
    digest: int
    """Names this model and these fields in a program that outlives the process."""

    @property
    def dt(self) -> float:
        """Seconds of one step of the environment."""
        return self.mj.opt.timestep * self.frame_skip

    @property
    def contact_forces(self) -> bool:
        """Whether contact forces are read, which MuJoCo computes on request only."""
        return "cfrc_ext" in self.fields


def words(qpos: Float[Array, " nq"], qvel: Float[Array, " nv"]) -> Array:
    """Returns what MuJoCo goes on from at the start: its solver begins at no acceleration.

    >>> words(jnp.ones(1), jnp.zeros(1)).tolist()
    [0, 1072693248, 0, 0, 0, 0]
    """
    return doubles(jnp.concatenate([qpos, qvel, jnp.zeros_like(qvel)]))


class Physics(NamedTuple):
    """A model and the functions of its engine."""

    model: Model
    step: Callable[[PhysicsState, Array], PhysicsState]
    forward: Callable[[PhysicsState], PhysicsState]
    """Reads a state that has not moved yet, where the readings do not follow from qpos alone."""
    exact: Callable[[Array, Array], Leaf] = words
    """(qpos, qvel) -> `PhysicsState.exact` of a simulation that begins."""


def engine_module(name: str = "mujoco") -> Any:
    """Imports MuJoCo, or a part of it that is a package of its own.

    Raises ImportError naming the extra if it is missing.

    >>> engine_module().MjModel.__name__
    'MjModel'
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"MuJoCo's tasks need {name}: pip install 'jrl[mujoco]'") from error


@functools.cache
def load(xml: str, fields: tuple[str, ...], frame_skip: int) -> Model:
    """Compiles one of the models that Gymnasium ships.

    Raises ImportError naming the extra if MuJoCo or Gymnasium is missing.
    """
    mujoco = engine_module()
    path = _assets() / xml
    # Nobody here can heed a warning about Gymnasium's file, which would also leave a log file.
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        mj = mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(handler)
    data = mujoco.MjData(mj)
    layout = {name: getattr(data, name).shape for name in fields}
    named = repr((path.read_bytes(), fields, frame_skip, mujoco.__version__)).encode()
    digest = int.from_bytes(hashlib.sha256(named).digest()[:7])
    return Model(mj, fields, layout, frame_skip, digest)


def _assets() -> pathlib.Path:
    # Found, not imported: its package of MuJoCo environments needs a renderer.
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ImportError(
            "the models of MuJoCo's tasks come with gymnasium: pip install 'jrl[mujoco]'"
        )
    return pathlib.Path(spec.origin).parent / "envs" / "mujoco" / "assets"


def start(body: Physics, qpos: Array, qvel: Array, derived: dict[str, Array]) -> PhysicsState:
    """Makes the state of a simulation that begins; what `derived` lacks reads as zero."""
    known = {"qpos": qpos, "qvel": qvel, **derived}
    parts = [jnp.asarray(known.get(k, jnp.zeros(s))) for k, s in body.model.layout.items()]
    # Where jax computes in float64, too, a state has the size that its engine hands back.
    high = jnp.concatenate([part.reshape(-1) for part in parts]).astype(jnp.float32)
    return PhysicsState(body.exact(qpos, qvel), high, jnp.zeros_like(high))


def share_of_cores() -> int:
    """Threads for one call, so that calls of all devices simulated on this CPU share its cores."""
    here = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
    return max(1, cores // jax.local_device_count("cpu"))


def doubles(x: Float[Array, " n"]) -> Array:
    """Writes numbers, rounded to float32, as the words of the same doubles, little end first.

    >>> doubles(jnp.array([1.0, -2.5])).tolist()
    [0, 1072693248, 0, 3221487616]
    """
    word = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign, exponent = word & jnp.uint32(1 << 31), (word >> jnp.uint32(23)) & jnp.uint32(255)
    mantissa = word & jnp.uint32((1 << 23) - 1)
    # 896 is the difference of the two biases. Subnormal numbers, which XLA flushes, become zero.
    high = sign | (exponent + jnp.uint32(896)) << jnp.uint32(20) | mantissa >> jnp.uint32(3)
    high = jnp.where(exponent == 0, sign, high)
    low = jnp.where(exponent == 0, jnp.uint32(0), mantissa << jnp.uint32(29))
    return jnp.stack([low, high], axis=-1).reshape(-1)
