"""MuJoCo behind a callback to Python: the engine where there is no C++ compiler.

One call steps the whole batch, however many `vmap`s surround it, with `mujoco.batch.Batch`: its
states are written from those given, and what it has computed is handed back. Where contact forces
are read, and where a reset takes the engine, it is a loop over the batch on one thread. Bit for
bit what the custom call of `native.py` does, only slower: a callback costs some hundred
microseconds.
"""

import threading

import jax
import jax.numpy as jnp
import numpy as np

from jrl.envs.mujoco.physics import Model, Physics, PhysicsState, engine_module, share_of_cores
from jrl.types import Array

__all__ = ["make"]

SIZES = 8
"""Numbers of simulations for which batches are kept: as many programs take turns at full speed."""


def make(model: Model, threads: int | None = None) -> Physics:
    """Makes the engine that steps all simulations of a call on `threads` threads.

    By default the cores are shared between the devices that jax simulates on this CPU.
    """
    host = _Host(model, threads or share_of_cores())
    readings = sum(int(np.prod(shape)) for shape in model.layout.values())

    def call(function, state: PhysicsState, *ctrl: Array) -> PhysicsState:
        shapes = (
            jax.ShapeDtypeStruct(state.exact.shape, jnp.uint32),
            jax.ShapeDtypeStruct((readings,), jnp.float32),
            jax.ShapeDtypeStruct((readings,), jnp.float32),
        )
        new = jax.pure_callback(function, shapes, state.exact, *ctrl, vmap_method="broadcast_all")
        return PhysicsState(*new)

    return Physics(
        model,
        lambda state, ctrl: call(host.step, state, ctrl.astype(jnp.float32)),
        lambda state: call(host.forward, state),
    )


class _Host:
    """Steps on the host: states of any leading axes in, states and readings out."""

    def __init__(self, model: Model, threads: int):
        self.model, self.threads = model, threads
        self.batches = {}
        self.lock = threading.Lock()

    def step(self, exact, ctrl):
        """Takes the steps of one action."""
        ctrl = np.asarray(ctrl, np.float64).reshape(-1, self.model.mj.nu)
        one = self._one_by_one if self.model.contact_forces else self._together
        return self._pack(exact, *one(self._rows(exact), ctrl))

    def forward(self, exact):
        """Evaluates states that have not moved."""
        mujoco = engine_module()

        def evaluate(data, ctrl):
            mujoco.mj_forward(self.model.mj, data)
            # What Gymnasium reads after a reset: contact forces come with the first step.
            data.cfrc_ext[:] = 0

        rows = self._rows(exact)
        return self._pack(exact, *self._one_by_one(rows, np.zeros((len(rows), 0)), evaluate))

    def _rows(self, exact):
        words = 2 * (self.model.mj.nq + 2 * self.model.mj.nv)
        return np.ascontiguousarray(exact).reshape(-1, words).view(np.float64)

    def _pack(self, exact, rows, readings):
        lead = np.shape(exact)[:-1]
        high = readings.astype(np.float32)
        low = (readings - high).astype(np.float32)
        words = np.ascontiguousarray(rows).view(np.uint32)
        return tuple(x.reshape(*lead, x.shape[-1]) for x in (words, high, low))

    def _together(self, rows, ctrl):
        nq, nv = self.model.mj.nq, self.model.mj.nv
        with self.lock:
            idle = self._idle(len(rows))
            batch = idle.pop() if idle else None
        if batch is None:
            batch = engine_module("mujoco.batch").Batch(
                self.model.mj, len(rows), nthread=self.threads
            )
        batch.qpos[:], batch.qvel[:] = rows[:, :nq], rows[:, nq : nq + nv]
        batch.qacc_warmstart[:], batch.ctrl[:] = rows[:, nq + nv :], ctrl
        # MuJoCo prints the first warning of each kind, and keeps it in a file of the user's.
        batch.warning[..., 1] = 1
        fields = [getattr(batch, name) for name in self.model.fields]
        batch.step(nstep=self.model.frame_skip)
        rows = np.concatenate([batch.qpos, batch.qvel, batch.qacc_warmstart], axis=1)
        readings = np.concatenate([field.reshape(len(rows), -1) for field in fields], axis=1)
        with self.lock:
            self._idle(len(rows)).append(batch)
        return rows, readings

    def _idle(self, number):
        """The batches of one size that nobody uses; with the lock held."""
        self.batches[number] = idle = self.batches.pop(number, [])
        if len(self.batches) > SIZES:
            del self.batches[next(iter(self.batches))]
        return idle

    def _one_by_one(self, rows, ctrl, work=None):
        """For what a batch does not do between its steps."""
        mujoco = engine_module()
        nq, nv = self.model.mj.nq, self.model.mj.nv
        data, out, readings = mujoco.MjData(self.model.mj), [], []

        def act(data, ctrl):
            data.ctrl[:] = ctrl
            mujoco.mj_step(self.model.mj, data, nstep=self.model.frame_skip)
            mujoco.mj_rnePostConstraint(self.model.mj, data)

        for row, u in zip(rows, ctrl, strict=True):
            data.qpos[:], data.qvel[:] = row[:nq], row[nq : nq + nv]
            data.qacc_warmstart[:] = row[nq + nv :]
            data.warning.number[:] = 1
            (work or act)(data, u)
            out.append(np.concatenate([data.qpos, data.qvel, data.qacc_warmstart]))
            fields = [getattr(data, name).reshape(-1) for name in self.model.fields]
            readings.append(np.concatenate(fields))
        return np.array(out), np.array(readings)
