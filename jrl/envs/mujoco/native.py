"""MuJoCo inside a compiled program on the CPU: an XLA custom call, built on first use.

`native.cc` is compiled by the C++ compiler at hand into a cache directory, once for each version
of MuJoCo, jaxlib and itself. A call costs some microseconds, where a callback to Python
(`host.py`, which takes its place where there is no compiler) costs hundreds, and programs with
it are kept in jax's persistent cache.
"""

import ctypes
import functools
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jrl.envs.mujoco.physics import Model, Physics, PhysicsState, engine_module, share_of_cores
from jrl.types import Array

__all__ = ["NativeError", "available", "make"]

TARGET = "jrl_mujoco_step"
COMPILERS = ("c++", "g++", "clang++")


class NativeError(RuntimeError):
    """The custom call cannot be built here; the message says why."""


def available() -> bool:
    """Whether the custom call can be built and loaded here."""
    try:
        _library()
    except NativeError:
        return False
    return True


def make(model: Model, threads: int | None = None) -> Physics:
    """Makes the engine that steps all simulations of a call on `threads` threads.

    By default the cores are shared between the devices that jax simulates on this CPU. Raises
    NativeError where there is no compiler.
    """
    library = _library()
    data = _data(model)
    origin = data.qpos.ctypes.data
    offsets = [(getattr(data, name).ctypes.data - origin) // 8 for name in model.fields]
    sizes = [getattr(data, name).size for name in model.fields]
    array = ctypes.c_int64 * len(sizes)
    library.jrl_mujoco_register(
        model.digest,
        ctypes.c_void_p(model.mj._address),
        int(model.contact_forces),
        len(sizes),
        array(*offsets),
        array(*sizes),
    )
    readings = sum(sizes)

    def call(state: PhysicsState, ctrl: Array, steps: int) -> PhysicsState:
        shapes = (
            jax.ShapeDtypeStruct(state.exact.shape, jnp.uint32),
            jax.ShapeDtypeStruct((readings,), jnp.float32),
            jax.ShapeDtypeStruct((readings,), jnp.float32),
        )
        function = jax.ffi.ffi_call(TARGET, shapes, vmap_method="broadcast_all")
        workers = threads or share_of_cores()
        attributes = {"model": model.digest, "steps": steps, "threads": workers}
        numbers = {name: np.int64(value) for name, value in attributes.items()}
        return PhysicsState(*function(state.exact, ctrl.astype(jnp.float32), **numbers))

    return Physics(
        model,
        lambda state, ctrl: call(state, ctrl, model.frame_skip),
        lambda state: call(state, jnp.zeros(model.mj.nu), 0),
    )


@functools.cache
def _data(model: Model):
    return engine_module().MjData(model.mj)


@functools.cache
def _library() -> ctypes.CDLL:
    """Builds, loads and registers the custom call, once per process."""
    mujoco = engine_module()
    home = pathlib.Path(mujoco.__file__).parent
    engines = sorted(home.glob("libmujoco.so*")) + sorted(home.glob("libmujoco*.dylib"))
    if not engines:
        raise NativeError(f"no shared library of MuJoCo in {home}")
    source = pathlib.Path(__file__).with_name("native.cc")
    versions = (source.read_bytes(), mujoco.__version__, jax.lib.__version__, str(engines[0]))
    name = hashlib.sha256(repr(versions).encode()).hexdigest()[:16]
    target = _cache() / f"mujoco-{name}.so"
    if not target.exists():
        _build(source, target, home / "include", engines[0])
    try:
        library = ctypes.CDLL(str(target))
    except OSError as error:
        raise NativeError(f"cannot load {target}: {error}") from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    array = ctypes.POINTER(integer)
    library.jrl_mujoco_register.argtypes = [
        integer,
        pointer,
        ctypes.c_int,
        ctypes.c_int,
        array,
        array,
    ]
    capsule = jax.ffi.pycapsule(library.jrl_mujoco_step)
    jax.ffi.register_ffi_target(TARGET, capsule, platform="cpu")
    return library


def _cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "jrl"


def _build(source: pathlib.Path, target: pathlib.Path, include: pathlib.Path, engine) -> None:
    names = (os.environ["CXX"],) if os.environ.get("CXX") else COMPILERS
    compiler = next(filter(shutil.which, names), None)
    if compiler is None:
        raise NativeError(f"no C++ compiler ({', '.join(names)}): install one, or set CXX")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NativeError(f"no place for what is compiled: {error}; set XDG_CACHE_HOME") from error
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = pathlib.Path(scratch) / target.name
        command = [compiler, "-std=c++17", "-O2", "-fPIC", "-shared", str(source), "-o", str(made)]
        command += [f"-I{include.parent}", f"-I{include}", f"-I{jax.ffi.include_dir()}"]
        command += [str(engine), f"-Wl,-rpath,{engine.parent}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise NativeError(f"{compiler} failed: {lines[0] if lines else done.returncode}")
        # One rename: two processes that build at once both leave a whole file.
        made.replace(target)
