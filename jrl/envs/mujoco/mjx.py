"""MuJoCo's physics in jax (MJX): the engine for GPUs and TPUs, from the same models.

It is another implementation, in float32: the first steps agree with MuJoCo's, then rounding and
contacts drive the two apart, as they would two runs of any chaotic system. What is derived from
positions (bodies, contact forces) is, as there, that of the last evaluation within the step. The
contacts of Ant are not MuJoCo's: some of its forces differ by as much as their size.
"""

import contextlib
import io

import jax
import jax.numpy as jnp
from flax import struct

from jrl.envs.mujoco.physics import Model, Physics, PhysicsState, engine_module
from jrl.types import Array, Leaf

__all__ = ["make"]


class Exact(struct.PyTreeNode):
    """What a simulation goes on from, f32; the last is where the solver begins."""

    qpos: Leaf
    qvel: Leaf
    qacc_warmstart: Leaf


def make(model: Model, name: str) -> Physics:
    """Makes the engine that runs in jax, on whichever device the program does.

    Raises ImportError naming the extra without mujoco-mjx, ValueError with the task's name where
    MJX lacks what its model asks for: Humanoid and HumanoidStandup have a solver of their own.
    """
    # Its import prints which of its other implementations are missing.
    with contextlib.redirect_stdout(io.StringIO()):
        mjx = engine_module("mujoco.mjx")
    try:
        mx = mjx.put_model(model.mj, impl="jax")
    except NotImplementedError as error:
        raise ValueError(
            f'MJX cannot run {name} ({error} is not implemented): use engine="native" or "callback"'
        ) from error
    blank = mjx.make_data(mx, impl="jax")

    def write(state: PhysicsState, ctrl: Array):
        exact = state.exact
        return blank.replace(
            qpos=exact.qpos, qvel=exact.qvel, qacc_warmstart=exact.qacc_warmstart, ctrl=ctrl
        )

    def read(data) -> PhysicsState:
        exact = Exact(data.qpos, data.qvel, data.qacc_warmstart)
        fields = [_field(data, field).reshape(-1) for field in model.fields]
        high = jnp.concatenate(fields).astype(jnp.float32)
        return PhysicsState(exact, high, jnp.zeros_like(high))

    def step(state: PhysicsState, ctrl: Array) -> PhysicsState:
        data = write(state, ctrl.astype(jnp.float32))
        data = jax.lax.fori_loop(0, model.frame_skip, lambda _, data: mjx.step(mx, data), data)
        return read(mjx.rne_postconstraint(mx, data) if model.contact_forces else data)

    def forward(state: PhysicsState) -> PhysicsState:
        return read(mjx.forward(mx, write(state, blank.ctrl)))

    return Physics(model, step, forward, _exact)


def _exact(qpos: Array, qvel: Array) -> Exact:
    return Exact(qpos, qvel, jnp.zeros_like(qvel))


def _field(data, name: str) -> Array:
    # What only this implementation of MJX has is one level down.
    return getattr(data._impl if hasattr(data._impl, name) else data, name)
