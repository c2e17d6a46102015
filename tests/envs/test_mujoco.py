"""MuJoCo's tasks against Gymnasium's -v5 environments, and their two engines against each other.

Largest differences measured in 1000 steps of random actions, relative to 1 + |x|:

    observation 9e-7 in Reacher, 6e-8 in all others; reward 4e-7; terminations, truncations none

They are those of float32 readings: the states themselves are MuJoCo's doubles, bit for bit.
"""

import importlib

import gymnasium
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jrl.envs import wrappers
from jrl.envs.mujoco import (
    ant,
    half_cheetah,
    hopper,
    host,
    humanoid,
    inverted_pendulum,
    native,
    physics,
)

NAMES = (
    "ant",
    "half_cheetah",
    "hopper",
    "humanoid",
    "humanoid_standup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "reacher",
    "swimmer",
    "walker2d",
)
ENGINES = ("native", "callback")
TOLERANCE = 1e-5


@pytest.fixture(params=NAMES)
def module(request):
    return importlib.import_module(f"jrl.envs.mujoco.{request.param}")


def _reference(module):
    """Gymnasium's environment, without the wrapper that warns of actions out of bounds."""
    return gymnasium.make(module.TASK.name, disable_env_checker=True)


def _position(state, model):
    """(qpos, qvel) of states, the doubles that MuJoCo goes on from."""
    x = np.ascontiguousarray(state.physics.exact).view(np.float64)
    return x[..., : model.nq], x[..., model.nq : model.nq + model.nv]


def _off(ours, theirs):
    return np.max(np.abs(np.asarray(ours) - theirs) / (1 + np.abs(theirs)))


# Gymnasium


@pytest.mark.parametrize("engine", ENGINES)
def test_trajectories_are_gymnasiums(module, engine):
    env, theirs = module.make(engine), _reference(module)
    params, inner, key = env.default_params, theirs.unwrapped, jax.random.key(0)
    step, reset = jax.jit(env.step), jax.jit(env.reset)
    draw = np.random.default_rng(1)
    # The callback's states are also compared with the custom call's, below.
    steps = 1000 if engine == "native" else 200

    def begin(seed):
        observation, state = reset(jax.random.key(seed), params)
        theirs.reset(seed=seed)
        inner.set_state(*_position(state, inner.model))
        assert _off(observation, inner._get_obs()) < TOLERANCE
        return state

    state = begin(0)
    for t in range(steps):
        action = draw.normal(size=inner.model.nu).astype(np.float32)
        observation, state, reward, terminated, truncated, _ = step(key, state, action, params)
        expected, expected_reward, *ends, _ = theirs.step(action)
        assert _off(observation, expected) < TOLERANCE, t
        assert _off(reward, expected_reward) < TOLERANCE, t
        assert [bool(terminated), bool(truncated)] == ends, t
        if any(ends):
            state = begin(t + 1)


def test_states_are_mujocos_bit_for_bit():
    env, theirs = half_cheetah.make("native"), _reference(half_cheetah)
    inner, draw = theirs.unwrapped, np.random.default_rng(2)
    _, state = env.reset(jax.random.key(0), env.default_params)
    theirs.reset(seed=0)
    inner.set_state(*_position(state, inner.model))
    # Gymnasium's `set_state` leaves the solver where the evaluation before has ended.
    inner.data.qacc_warmstart[:] = 0
    step = jax.jit(env.step)
    for _ in range(100):
        action = draw.normal(size=6).astype(np.float32)
        state = step(jax.random.key(0), state, action, env.default_params)[1]
        theirs.step(action)
        qpos, qvel = _position(state, inner.model)
        np.testing.assert_array_equal(qpos, inner.data.qpos)
        np.testing.assert_array_equal(qvel, inner.data.qvel)


def test_starts_are_distributed_as_gymnasiums(module):
    """Kolmogorov-Smirnov, every coordinate; and no start lies outside of Gymnasium's bounds."""
    env, theirs = module.make(), _reference(module)
    inner, number = theirs.unwrapped, 1000
    keys = jax.random.split(jax.random.key(3), number)
    _, state = jax.jit(jax.vmap(env.reset, (0, None)))(keys, env.default_params)
    ours = np.concatenate(_position(state, inner.model), axis=1)
    rows = []
    for seed in range(number):
        inner.reset(seed=seed)
        rows.append(np.concatenate([inner.data.qpos, inner.data.qvel]))
    expected = np.array(rows)
    spread = expected.max(0) - expected.min(0)
    low, high = expected.min(0) - spread, expected.max(0) + spread
    assert np.all((ours >= low - 1e-6) & (ours <= high + 1e-6))
    for i in range(ours.shape[1]):
        if spread[i] > 0:
            assert stats.ks_2samp(ours[:, i], expected[:, i]).pvalue > 1e-4, i
        else:
            np.testing.assert_allclose(ours[:, i], expected[:, i], atol=1e-7)


def test_spaces_are_gymnasiums(module):
    env, theirs = module.make(), _reference(module)
    params = env.default_params
    assert env.observation_space(params).shape == theirs.observation_space.shape
    actions = env.action_space(params)
    assert actions.shape == theirs.action_space.shape
    np.testing.assert_array_equal(np.asarray(actions.low, np.float32), theirs.action_space.low)
    np.testing.assert_array_equal(np.asarray(actions.high, np.float32), theirs.action_space.high)
    assert params.max_steps_in_episode == theirs.spec.max_episode_steps


def test_actions_are_clamped_by_the_engine_and_not_before():
    env = half_cheetah.make()
    key, params = jax.random.key(0), env.default_params
    _, state = env.reset(key, params)
    far, edge = (env.step(key, state, jnp.full(6, a), params) for a in (3.0, 1.0))
    np.testing.assert_array_equal(far[0], edge[0])
    assert float(edge[2] - far[2]) == pytest.approx(0.1 * 6 * (9 - 1), rel=1e-5)


# Engines


def test_engines_agree_bit_for_bit_under_vmaps(module, monkeypatch):
    calls = []
    step = host._Host.step
    monkeypatch.setattr(host._Host, "step", lambda *args: calls.append(1) or step(*args))
    envs = [module.make(engine) for engine in ENGINES]
    params = envs[0].default_params
    keys = jax.random.split(jax.random.key(0), (2, 3))
    shape = (4, 2, 3, *envs[0].action_space(params).shape)
    actions = jax.random.normal(jax.random.key(1), shape)
    seen = []
    for env in envs:

        def twice(function, *axes):
            return jax.jit(jax.vmap(jax.vmap(function, axes), axes))

        _, state = twice(env.reset, 0, None)(keys, params)
        advance, trail = twice(env.step, 0, 0, 0, None), [state.physics]
        for action in actions:
            state = advance(keys, state, action, params)[1]
            trail.append(state.physics)
        seen.append(jax.device_get(trail))
    jax.tree.map(np.testing.assert_array_equal, *seen)
    assert len(calls) == len(actions), "one call for the whole batch"


def test_threads_change_nothing():
    model = physics.load(hopper.TASK.xml, hopper.TASK.fields, hopper.TASK.frame_skip)
    bodies = [make(model, threads) for make in (native.make, host.make) for threads in (1, 3)]
    begin = physics.start(bodies[0], jnp.asarray(model.mj.qpos0, jnp.float32), jnp.zeros(6), {})
    state = jax.tree.map(lambda x: jnp.stack([x] * 7), begin)
    ctrl = jax.random.normal(jax.random.key(0), (7, 3))
    first, *others = (jax.device_get(jax.vmap(body.step)(state, ctrl)) for body in bodies)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


def test_batches_of_many_sizes_are_not_all_kept():
    model = physics.load(hopper.TASK.xml, hopper.TASK.fields, hopper.TASK.frame_skip)
    bodies = [module.make(model, 2) for module in (native, host)]
    begin = physics.start(bodies[0], jnp.asarray(model.mj.qpos0, jnp.float32), jnp.zeros(6), {})
    sizes = (*range(1, host.SIZES + 4), 1, 1, 2)
    state = jax.tree.map(lambda x: np.stack([x] * max(sizes)), jax.device_get(begin))
    ctrl = np.random.default_rng(0).normal(size=(max(sizes), 3)).astype(np.float32)
    steps = [jax.vmap(body.step) for body in bodies]
    expected = jax.device_get(steps[0](state, ctrl))
    # More than are kept; then those that were dropped, twice.
    for number in sizes:
        first, rows = (jax.tree.map(lambda x, n=number: x[:n], x) for x in (state, expected))
        for step in steps:
            jax.tree.map(np.testing.assert_array_equal, step(first, ctrl[:number]), rows)
    idle = host._Host(model, 1)
    for number in range(20):
        idle._idle(number % 12).append(number)
    assert list(idle.batches) == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("field", ["state", "action"])
def test_what_is_not_finite_is_silent(tmp_path, monkeypatch, capfd, engine, field):
    monkeypatch.chdir(tmp_path)
    for module in (hopper, ant):
        env = module.make(engine)
        key, params = jax.random.key(0), env.default_params
        state = jax.jit(env.reset)(key, params)[1]
        action = jnp.zeros(env.action_space(params).shape)
        if field == "state":
            bad = jnp.full_like(state.physics.exact, 0x7FF80000)
            state = state.replace(physics=state.physics.replace(exact=bad))
        else:
            action = jnp.full_like(action, jnp.nan)
        step = jax.jit(env.step)
        observation, state, *_ = step(key, state, action, params)
        assert np.isfinite(observation).all()
        jax.block_until_ready(step(key, state, action, params))
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_in_float64_states_have_the_same_types(engine):
    key = jax.random.key(0)
    env = humanoid.make(engine)
    params = env.default_params
    types = jax.tree.map(lambda x: (x.shape, x.dtype), jax.jit(env.reset)(key, params))
    with jax.enable_x64(True):
        observation, state = jax.jit(env.reset)(key, params)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), (observation, state)) == types
        action = jnp.ones(env.action_space(params).shape)
        assert action.dtype == jnp.float64
        observation, after, *_ = jax.jit(env.step)(key, state, action, params)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), (observation, after)) == types
    expected = jax.jit(env.step)(key, state, action.astype(jnp.float32), params)[1]
    jax.tree.map(np.testing.assert_array_equal, after, expected)


def test_a_reset_in_a_batch_and_a_time_limit():
    env = wrappers.vectorize(hopper.make(), 4)
    params = env.default_params.replace(max_steps_in_episode=20)
    observation, state = env.reset(jax.random.key(0), params)
    step = jax.jit(env.step)
    ends = []
    for t in range(40):
        keys = jax.random.split(jax.random.key(t + 1))
        action = jax.random.normal(keys[0], (4, 3))
        observation, state, _, terminated, truncated, info = step(keys[1], state, action, params)
        for i in np.flatnonzero(terminated | truncated):
            assert np.all(np.abs(observation[i, 5:]) <= 5e-3), "a new episode begins at rest"
            assert np.any(np.abs(info["final_observation"][i, 5:]) > 5e-3)
        ends.append((np.asarray(terminated), np.asarray(truncated)))
    terminated, truncated = map(np.array, zip(*ends, strict=True))
    assert truncated.any() and (terminated | truncated).sum(0).min() >= 2


def test_parameters_are_batched():
    env = inverted_pendulum.make()
    params = jax.vmap(lambda angle: env.default_params.replace(largest_angle=angle))(
        jnp.array([1e-6, 0.2])
    )
    _, state = env.reset(jax.random.key(0), env.default_params)
    axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, params)
    step = jax.vmap(env.step, (None, None, None, axes))
    terminated = step(jax.random.key(0), state, jnp.zeros(1), params)[3]
    assert terminated.tolist() == [True, False]


# Doubles


def _doubles(x):
    return np.asarray(physics.doubles(jnp.asarray(x, jnp.float32))).view(np.float64)


@hypothesis.given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False),
        min_size=3,
        max_size=3,
    )
)
def test_doubles_are_numpys(numbers):
    x = np.array(numbers, np.float32)
    np.testing.assert_array_equal(_doubles(x).view(np.uint64), x.astype(np.float64).view(np.uint64))


def test_doubles_at_the_edges():
    info = np.finfo(np.float32)
    x = np.array([0.0, -0.0, info.max, info.min, info.tiny, -info.tiny], np.float32)
    np.testing.assert_array_equal(_doubles(x).view(np.uint64), x.astype(np.float64).view(np.uint64))
    np.testing.assert_array_equal(_doubles([info.smallest_subnormal]), [0.0])


def test_a_displacement_keeps_its_digits_far_from_the_origin():
    x = np.array([1000.0, 1000.0 + 1e-7])
    high = jnp.asarray(x, jnp.float32)
    low = jnp.asarray(x - np.asarray(high), jnp.float32)
    then, now = (
        physics.Readings(physics.PhysicsState((), high[i : i + 1], low[i : i + 1]), {"qpos": (1,)})
        for i in range(2)
    )
    assert float(now.since(then, "qpos")[0]) == pytest.approx(1e-7, rel=1e-3)
    with pytest.raises(KeyError, match="xpos is not read"):
        now["xpos"]
