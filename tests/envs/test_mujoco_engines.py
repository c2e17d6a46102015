"""Which of MuJoCo's engines a task gets: what is built, where it is kept, what takes its place."""

import functools
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import pytest

from jrl.envs.mujoco import hopper, native, physics, task

ROOT = pathlib.Path(__file__).parent.parent.parent


def _call(program, env):
    """The program of one step as text."""
    _, state = env.reset(jax.random.key(0), env.default_params)
    action = jnp.zeros(env.action_space(env.default_params).shape)
    return str(jax.make_jaxpr(program)(jax.random.key(0), state, action, env.default_params))


def _unbuilt(monkeypatch, tmp_path, **variables):
    """A process that has not built the custom call yet, with an empty cache."""
    monkeypatch.setattr(native, "_library", functools.cache(native._library.__wrapped__))
    monkeypatch.setattr(task, "_warn", functools.cache(task._warn.__wrapped__))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables, reason",
    [
        ({"CXX": "no-such-compiler"}, "no C.. compiler .no-such-compiler."),
        ({"CXX": "", "PATH": ""}, "no C.. compiler .c.., g.., clang...: install one, or set CXX"),
        ({"CXX": f"{sys.executable} -E"}, "-E failed: "),
        ({"CXX": "g++ '"}, "CXX is not a command"),
    ],
)
def test_without_a_compiler_the_callback_takes_over(monkeypatch, tmp_path, variables, reason):
    _unbuilt(monkeypatch, tmp_path, **variables)
    with pytest.raises(native.NativeError, match=reason) as caught:
        hopper.make("native")
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=f"{reason}.*; a slower callback to Python"):
        env = hopper.make()
    assert "pure_callback" in _call(env.step, env)


def test_a_failure_is_tried_and_told_once(monkeypatch, tmp_path):
    _unbuilt(monkeypatch, tmp_path, CXX=sys.executable)
    runs, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **kw: runs.append(1) or run(*args, **kw))
    with pytest.warns(UserWarning) as told:
        for _ in range(3):
            hopper.make()
    assert len(told) == len(runs) == 1


def test_a_compiler_may_come_with_words(monkeypatch, tmp_path):
    _unbuilt(monkeypatch, tmp_path)
    (tmp_path / "ccache").write_text('#!/bin/sh\nexec "$@"\n')
    (tmp_path / "ccache").chmod(0o755)
    command = [str(tmp_path / "ccache"), *native._compiler()]
    monkeypatch.setenv("CXX", " ".join(command))
    assert native._compiler() == command


@pytest.mark.parametrize("home", ["a file", "read-only", "none"])
def test_without_a_cache_the_library_is_among_temporary_files(monkeypatch, tmp_path, home):
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\ncp {native._library()._name} "$6"\n')
    compiler.chmod(0o755)
    _unbuilt(monkeypatch, tmp_path, CXX=str(compiler))
    if home == "a file":
        (tmp_path / "cache").write_text("")
    elif home == "read-only":
        whole = tempfile.TemporaryDirectory

        def refuse(dir):
            if dir.is_relative_to(tmp_path / "cache"):
                raise PermissionError(f"Permission denied: {dir}")
            return whole(dir=dir)

        monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    else:

        def homeless():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(pathlib.Path, "home", homeless)
    loaded = native._load("mujoco.so", [])
    assert loaded.jrl_mujoco_step
    (place,) = (tmp_path / "temporary").iterdir()
    assert place.stat().st_mode & 0o777 == 0o700
    assert [x.name for x in place.iterdir()] == ["mujoco.so"]


def test_without_any_place_the_callback_takes_over(monkeypatch, tmp_path):
    _unbuilt(monkeypatch, tmp_path)
    (tmp_path / "cache").write_text("")
    place = native._temporary()
    place.chmod(0o777)
    with pytest.raises(native.NativeError, match="is open to other users.*set XDG_CACHE_HOME"):
        hopper.make("native")
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME"):
        env = hopper.make()
    assert "pure_callback" in _call(env.step, env)


def test_with_a_compiler_the_custom_call_is_chosen():
    assert native.problem() is None
    env = hopper.make()
    assert native.TARGET in _call(env.step, env)


def test_on_an_accelerator_the_callback_is_chosen(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    env = hopper.make()
    assert "pure_callback" in _call(env.step, env)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine must be one of auto, native, callback, mjx"):
        # Without the type check of the tests, which would refuse it first.
        inspect.unwrap(task.environment)(hopper.TASK, "bullet")


@pytest.mark.parametrize("name", ["mujoco", "gymnasium"])
def test_a_missing_package_names_the_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name}.*jrl\[mujoco\]"):
        physics.load.__wrapped__("hopper.xml", ("qpos",), 4)


@pytest.mark.slow
def test_programs_are_kept_for_the_next_process(tmp_path):
    code = """
import json, jax, jax.numpy as jnp
from jrl.envs.mujoco import hopper
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
env = hopper.make("native")
state = env.reset(jax.random.key(0), env.default_params)[1]
step = jax.jit(env.step)
observation, *_ = step(jax.random.key(0), state, jnp.ones(3), env.default_params)
print(json.dumps(observation.tolist()))
"""
    variables = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    seen = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=variables
        )
        assert done.returncode == 0, done.stderr
        kept = {x.name for x in tmp_path.iterdir() if not x.name.endswith("-atime")}
        seen.append((json.loads(done.stdout), kept))
    assert any("jit_step" in name for name in seen[0][1])
    assert seen[0] == seen[1], "the second process compiles nothing anew"
