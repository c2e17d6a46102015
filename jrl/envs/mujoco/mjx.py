"""MuJoCo's physics in jax (MJX): the engine for GPUs and TPUs, from the same models."""

from jrl.envs.mujoco.physics import Model, Physics, engine_module

__all__ = ["make"]


def make(model: Model) -> Physics:
    """Makes the engine."""
    engine_module("mujoco.mjx")
    raise NotImplementedError("MJX")
