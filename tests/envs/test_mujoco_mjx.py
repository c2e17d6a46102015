"""MuJoCo's tasks in MJX against the same tasks in MuJoCo.

The largest differences in ten steps of eight episodes with random actions, relative to 1 + |x|:

                          observation   reward   bound
    HalfCheetah                  2e-3     1e-4    1e-2
    Hopper                       7e-6     4e-7    1e-4
    InvertedDoublePendulum       2e-6     3e-7    1e-5
    InvertedPendulum             2e-7        0    1e-6
    Reacher                      6e-7     5e-8    1e-5
    Swimmer                      3e-6     3e-7    1e-5
    Walker2d                     4e-5     6e-6    1e-3

They are what float32 makes of float64; contacts multiply it. Both engines read what is derived from
positions (Reacher's fingertip, the double pendulum's tip) from their last evaluation within a
step, the fourth of the last Runge-Kutta step, so it lags behind the positions by as much in both,
and needs no tolerance of its own.
"""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl.envs.mujoco import ant, humanoid, humanoid_standup, inverted_pendulum, mjx, physics

TOLERANCE = {
    "half_cheetah": 1e-2,
    "hopper": 1e-4,
    "inverted_double_pendulum": 1e-5,
    "inverted_pendulum": 1e-6,
    "reacher": 1e-5,
    "swimmer": 1e-5,
    "walker2d": 1e-3,
}
STEPS, EPISODES = 10, 8


@pytest.fixture(autouse=True)
def _ranks():
    """MJX adds vectors to matrices, which is an error in these tests only."""
    with jax.numpy_rank_promotion("allow"):
        yield


def _play(module, engines):
    """Plays the same episodes on each engine; returns arrays of [episode, step, ...]."""
    envs = [module.make(engine) for engine in engines]
    params = envs[0].default_params
    shape = (EPISODES, STEPS, *envs[0].action_space(params).shape)
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, shape).astype(np.float32)
    return [_episodes(env, params, actions) for env in envs]


def _episodes(env, params, actions):
    # Without `vmap` and `scan`, which would take several times as long to compile.
    step, episodes = jax.jit(env.step), []
    for seed, episode in enumerate(actions):
        key = jax.random.key(seed)
        _, state = env.reset(key, params)
        steps = []
        for action in episode:
            observation, state, *outcome, _ = step(key, state, action, params)
            steps.append((observation, *outcome))
        episodes.append(steps)
    rows = [list(zip(*steps, strict=True)) for steps in episodes]
    return [np.array(column) for column in zip(*rows, strict=True)]


def _off(ours, theirs):
    return np.max(np.abs(ours - theirs) / (1 + np.abs(theirs)))


@pytest.mark.slow
@pytest.mark.parametrize("name", TOLERANCE)
def test_first_steps_are_mujocos(name):
    module = importlib.import_module(f"jrl.envs.mujoco.{name}")
    ours, theirs = _play(module, ("mjx", "auto"))
    assert ours[0].dtype == np.float32
    assert _off(ours[0], theirs[0]) < TOLERANCE[name]
    assert _off(ours[1], theirs[1]) < TOLERANCE[name]
    np.testing.assert_array_equal(ours[2:], theirs[2:])


@pytest.mark.slow
def test_ant_is_mujocos_until_it_touches_the_ground():
    (ours, *_), (theirs, *_) = _play(ant, ("mjx", "auto"))
    # It starts above the ground and falls for more than one step.
    assert _off(ours[:, 0], theirs[:, 0]) < 1e-4
    assert np.isfinite(ours).all() and np.abs(ours[..., 27:]).max() == 1
    # The same bodies touch something at much the same times.
    assert np.mean((ours[..., 27:] != 0) == (theirs[..., 27:] != 0)) > 0.9


def test_a_start_is_what_the_engine_goes_on_from():
    env = inverted_pendulum.make("mjx")
    observation, state = env.reset(jax.random.key(0), env.default_params)
    exact = state.physics.exact
    np.testing.assert_array_equal(jnp.concatenate([exact.qpos, exact.qvel]), observation)
    assert exact.qacc_warmstart.tolist() == [0, 0]
    assert {x.dtype.name for x in jax.tree.leaves(state.physics)} == {"float32"}


@pytest.mark.slow
def test_forward_reads_a_state_that_has_not_moved():
    task = inverted_pendulum.TASK
    model = physics.load(task.xml, (*task.fields, "xpos", "cinert"), task.frame_skip)
    body = mjx.make(model, task.name)
    state = physics.start(body, jnp.array([0.5, 0.0]), jnp.array([0.0, 1.0]), {})
    seen = physics.Readings(jax.jit(body.forward)(state), model.layout)
    np.testing.assert_allclose(seen["xpos"][1], [0.5, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(seen["qvel"], [0, 1])
    assert float(seen["cinert"][1, 9]) == pytest.approx(model.mj.body_mass[1])


@pytest.mark.parametrize("module", [humanoid, humanoid_standup])
def test_what_mjx_lacks_is_refused_by_name(module):
    with pytest.raises(ValueError, match=f"MJX cannot run {module.TASK.name}.*PGS.*native"):
        module.make("mjx")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)
    with pytest.raises(ImportError, match=r"mujoco.mjx.*jrl\[mujoco\]"):
        inverted_pendulum.make("mjx")
