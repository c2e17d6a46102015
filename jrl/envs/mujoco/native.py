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
import shlex
import shutil
import stat
import subprocess
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jrl.envs.mujoco.physics import Model, Physics, PhysicsState, engine_module, share_of_cores
from jrl.types import Array

__all__ = ["NativeError", "make", "problem"]

TARGET = "jrl_mujoco_step"
COMPILERS = (["c++"], ["g++"], ["clang++"])


class NativeError(ImportError):
    """The custom call cannot be built here; the message says why."""


def problem() -> str | None:
    """Why the custom call cannot be built or loaded here, or None if it can; tried only once."""
    made = _library()
    return made if isinstance(made, str) else None


def make(model: Model, threads: int | None = None) -> Physics:
    """Makes the engine that steps all simulations of a call on `threads` threads.

    By default the cores are shared between the devices that jax simulates on this CPU. Raises
    NativeError where it cannot be built, for example without a compiler.
    """
    library = _library()
    if isinstance(library, str):
        raise NativeError(library)
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
def _library() -> ctypes.CDLL | str:
    """Builds, loads and registers the custom call, or says why not, once per process."""
    mujoco = engine_module()
    home = pathlib.Path(mujoco.__file__).parent
    engines = sorted(home.glob("libmujoco.so*")) + sorted(home.glob("libmujoco*.dylib"))
    if not engines:
        return f"no shared library of MuJoCo in {home}"
    source = pathlib.Path(__file__).with_name("native.cc")
    versions = (source.read_bytes(), mujoco.__version__, jax.lib.__version__, str(engines[0]))
    name = f"mujoco-{hashlib.sha256(repr(versions).encode()).hexdigest()[:16]}.so"
    flags = [str(source), f"-I{home}", f"-I{home / 'include'}", f"-I{jax.ffi.include_dir()}"]
    flags += [str(engines[0]), f"-Wl,-rpath,{home}"]
    try:
        library = _load(name, flags)
    except NativeError as error:
        return str(error)
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


def _load(name: str, flags: list[str]) -> ctypes.CDLL:
    """Loads the library from the first place that keeps it, built there if it is not yet."""
    problems = []
    for find in (_cache, _temporary):
        try:
            target = find() / name
            if not target.exists():
                _build(target, flags)
            return ctypes.CDLL(str(target))
        except NativeError:
            raise
        except (OSError, RuntimeError) as error:
            problems.append(str(error))
    raise NativeError(
        f"no place to build and load from ({'; '.join(problems)}): set XDG_CACHE_HOME"
    )


def _cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME")
    place = (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "jrl"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _temporary() -> pathlib.Path:
    place = pathlib.Path(tempfile.gettempdir()) / f"jrl-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    about = place.lstat()
    # All may write beside it: what another user has left at this name must not be loaded.
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise PermissionError(f"{place} is open to other users")
    return place


def _build(target: pathlib.Path, flags: list[str]) -> None:
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = pathlib.Path(scratch) / target.name
        command = [*compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-o", str(made), *flags]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            reason = lines[0] if lines else done.returncode
            raise NativeError(f"{shlex.join(compiler)} failed: {reason}")
        # One rename: two processes that build at once both leave a whole file.
        made.replace(target)


def _compiler() -> list[str]:
    try:
        chosen = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise NativeError(f"CXX is not a command: {error}") from error
    commands = [chosen] if chosen else COMPILERS
    for command in commands:
        if shutil.which(command[0]):
            return command
    names = ", ".join(map(shlex.join, commands))
    raise NativeError(f"no C++ compiler ({names}): install one, or set CXX")
