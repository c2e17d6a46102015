"""Bridges: Gymnasium through host callbacks, brax, and gymnax in both directions.

brax is not a dependency. Its tests run where it is importable; a stand-in with its interface is
tested everywhere.
"""

import importlib.util
import math
import sys

import gymnasium
import gymnax
import gymnax.wrappers.purerl
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import jrl.envs.brax as brax_bridge
import jrl.envs.gymnasium as bridge
from jrl.envs import (
    acrobot,
    cartpole,
    mountain_car,
    mountain_car_continuous,
    pendulum,
    probes,
    wrappers,
)
from jrl.envs.spaces import Box, Discrete

MODES = gymnasium.vector.AutoresetMode
NUM_ENVS = 3


# Gymnasium


def _vector(name, mode):
    return gymnasium.make_vec(
        name, NUM_ENVS, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )


def _unroll(env, key, actions):
    """Returns what a jitted scan over the actions `[T, N, ...]` sees."""

    def body(state, inputs):
        observation, state, *rest, info = env.step(inputs[0], state, inputs[1], ())
        return state, (observation, *rest, info["final_observation"])

    def unroll(key, actions):
        observation, state = env.reset(key, ())
        keys = jax.random.split(key, len(actions))
        return observation, jax.lax.scan(body, state, (keys, actions))[1]

    return jax.jit(unroll)(key, actions)


def _direct(name, seed, actions):
    """Does the same with plain environments, reset by hand."""
    envs = [gymnasium.make(name) for _ in range(NUM_ENVS)]
    first = [env.reset(seed=seed + i)[0] for i, env in enumerate(envs)]
    rows = []
    for batch in actions:
        row = []
        for env, action in zip(envs, batch, strict=True):
            final, reward, terminated, truncated, _ = env.step(action)
            observation = env.reset()[0] if terminated or truncated else final
            row.append((observation, np.float32(reward), terminated, truncated, final))
        rows.append([np.stack(column) for column in zip(*row, strict=True)])
    return np.stack(first), [np.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("mode", [MODES.SAME_STEP, MODES.DISABLED])
@pytest.mark.parametrize(("name", "steps"), [("CartPole-v1", 400), ("Pendulum-v1", 410)])
def test_gymnasium_in_a_scan_equals_stepping_by_hand(name, steps, mode):
    env, key = bridge.from_gymnasium(_vector(name, mode)), jax.random.key(3)
    space = env.action_space(())
    actions = jax.vmap(jax.vmap(space.sample))(jax.random.split(key, (steps, NUM_ENVS)))
    first, actual = _unroll(env, key, actions)
    expected_first, expected = _direct(name, int(bridge.seed(key)), np.array(actions))
    np.testing.assert_array_equal(first, expected_first)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)
    observation, reward, terminated, truncated, final = actual
    done = np.array(terminated | truncated)
    assert done.sum(0).min() >= 2
    assert (terminated if name == "CartPole-v1" else truncated).any()
    assert observation.dtype == reward.dtype == final.dtype == jnp.float32
    changed = (np.array(observation) != np.array(final)).any(-1)
    np.testing.assert_array_equal(changed, done)


def test_gymnasium_resets_from_the_key():
    env = bridge.make("CartPole-v1", NUM_ENVS)
    reset = jax.jit(env.reset)
    first, _ = reset(jax.random.key(0), ())
    other, _ = reset(jax.random.key(1), ())
    again, _ = reset(jax.random.key(0), ())
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).all()
    assert len(np.unique(np.array(first)[:, 0])) == NUM_ENVS


def test_gymnasium_under_our_wrappers():
    env = wrappers.normalize_observation(bridge.make("CartPole-v1", NUM_ENVS))
    key = jax.random.key(0)
    _, (observation, *_) = _unroll(env, key, jnp.ones((50, NUM_ENVS), jnp.int32))
    assert observation.shape == (50, NUM_ENVS, 4) and jnp.isfinite(observation).all()


def test_gymnasium_discrete_observations():
    env = bridge.make("FrozenLake-v1", NUM_ENVS)
    assert env.observation_space(()) == Discrete(16) and env.action_space(()) == Discrete(4)
    actions = jnp.ones((20, NUM_ENVS), jnp.int32)
    first, (observation, *_) = _unroll(env, jax.random.key(0), actions)
    assert first.shape == (NUM_ENVS,) and observation.dtype == jnp.int32
    assert (np.array(observation) > 0).any()


def test_gymnasium_spaces():
    env = bridge.make("CartPole-v1", NUM_ENVS)
    assert (env.name, env.num_envs) == ("CartPole-v1", NUM_ENVS)
    space = env.observation_space(())
    ours = cartpole.make().observation_space(cartpole.Params())
    assert space.shape == (4,)
    np.testing.assert_allclose(space.high, ours.high, rtol=1e-6)
    space = bridge.make("Pendulum-v1", 1).action_space(())
    assert space == Box(-2.0, 2.0, (1,), np.float32)


class _Fake(gymnasium.vector.VectorEnv):
    """Just enough of a vector environment."""

    num_envs = 2
    spec = None
    metadata = {"autoreset_mode": MODES.SAME_STEP}
    single_observation_space = gymnasium.spaces.Box(0, 255, (2, 2), np.uint8)
    single_action_space = gymnasium.spaces.Box(-1, 1, (2000,), np.float64)

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 2, 2), np.uint8), {}

    def step(self, actions):
        assert isinstance(actions, np.ndarray) and actions.dtype == np.float64
        done = np.zeros(2, bool)
        return np.full((2, 2, 2), 7, np.uint8), actions.sum(1), done, done, {}


def test_gymnasium_keeps_bytes_and_narrows_floats():
    env = bridge.from_gymnasium(_Fake())
    assert env.name == "_Fake" and env.observation_space(()).dtype == np.uint8
    _, (observation, reward, *_) = _unroll(env, jax.random.key(0), jnp.ones((5, 2, 2000)))
    assert observation.dtype == jnp.uint8 and (observation == 7).all()
    assert reward.dtype == jnp.float32 and (reward == 2000).all()


@pytest.mark.parametrize(
    "space", [gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Discrete(2, start=1)]
)
def test_gymnasium_refuses_other_spaces(space):
    env = _Fake()
    env.single_action_space = space
    with pytest.raises(TypeError, match="only Box and Discrete"):
        bridge.from_gymnasium(env)


@pytest.mark.parametrize(
    "kwargs", [{"vectorization_mode": "sync"}, {"vectorization_mode": "vector_entry_point"}]
)
def test_gymnasium_refuses_next_step_mode(kwargs):
    env = gymnasium.make_vec("CartPole-v1", 2, **kwargs)
    with pytest.raises(ValueError, match="SAME_STEP or DISABLED"):
        bridge.from_gymnasium(env)


def test_gymnasium_refuses_vmap():
    env = bridge.make("CartPole-v1", NUM_ENVS)
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="cannot be vmapped"):
        jax.vmap(env.reset, (0, None))(keys, ())
    _, state = env.reset(keys[0], ())
    with pytest.raises(ValueError, match="cannot be vmapped"):
        jax.jit(jax.vmap(lambda a: env.step(keys[0], state, a, ())))(jnp.ones((2, 3), jnp.int32))


def test_gymnasium_refuses_an_old_state():
    env = bridge.make("CartPole-v1", NUM_ENVS)
    _, state = env.reset(jax.random.key(0), ())
    action = jnp.ones(NUM_ENVS, jnp.int32)
    _, later, *_ = env.step(jax.random.key(0), state, action, ())
    with pytest.raises(jax.errors.JaxRuntimeError, match="use every state once"):
        jax.block_until_ready(env.step(jax.random.key(0), state, action, ()))
    jax.block_until_ready(env.step(jax.random.key(0), later, action, ()))


@pytest.mark.parametrize(
    ("module", "make", "message"),
    [
        ("gymnasium", lambda: bridge.make("CartPole-v1", 1), r"install jrl\[envs\]"),
        ("brax.envs", lambda: brax_bridge.make("fast"), "pip install brax"),
    ],
)
def test_missing_package(module, make, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        make()


# brax


@struct.dataclass
class _BraxState:
    pipeline_state: object
    obs: object
    reward: object
    done: object
    metrics: dict = struct.field(default_factory=dict)
    info: dict = struct.field(default_factory=dict)


class _BraxLike:
    """A point on a line, done beyond 1, with the members of `brax.envs.Env`."""

    observation_size, action_size = 2, 1

    def __init__(self, limited=False):
        self.limited = limited

    def reset(self, rng):
        position = jax.random.uniform(jax.random.split(rng)[0], (2,), minval=-0.1, maxval=0.1)
        zero = jnp.zeros(())
        info = {"truncation": zero} if self.limited else {"rng": rng}
        return _BraxState(position, position, zero, zero, {"distance": zero}, info)

    def step(self, state, action):
        position = state.pipeline_state + 0.1 * action[0]
        distance = jnp.abs(position).max()
        done = (distance > 1).astype(jnp.float32)
        return state.replace(
            pipeline_state=position,
            obs=position,
            reward=-distance,
            done=done,
            metrics={"distance": distance},
        )


def _play(env, actions, key):
    params = env.default_params
    observation, state = env.reset(key, params)

    def body(state, action):
        observation, state, *rest = env.step(key, state, action, params)
        return state, (observation, *rest)

    return jax.jit(lambda s: jax.lax.scan(body, s, actions))(state)[1]


def test_brax_stand_in():
    source = _BraxLike()
    env = brax_bridge.from_brax(source, max_steps=12)
    assert env.name == "_BraxLike"
    assert env.observation_space(env.default_params) == Box(-math.inf, math.inf, (2,))
    assert env.action_space(env.default_params) == Box(-1.0, 1.0, (1,))
    key = jax.random.key(0)
    observation, reward, terminated, truncated, info = _play(env, jnp.ones((15, 1)), key)
    state = source.reset(key)
    for t in range(15):
        state = source.step(state, jnp.ones(1))
        np.testing.assert_allclose(observation[t], state.obs, rtol=1e-6)
        np.testing.assert_allclose(reward[t], state.reward, rtol=1e-6)
        assert terminated[t] == (state.done == 1)
    assert terminated.dtype == truncated.dtype == jnp.bool_
    assert not terminated[0] and terminated[-1]
    assert truncated.tolist() == [False] * 11 + [True] * 4
    np.testing.assert_allclose(info["distance"], -reward)


def test_brax_stand_in_vectorized():
    env = wrappers.vectorize(brax_bridge.from_brax(_BraxLike(), max_steps=5), 4)
    params = env.default_params
    _, state = env.reset(jax.random.key(0), params)
    step = jax.jit(env.step)
    for t in range(11):
        result = step(jax.random.key(t), state, jnp.ones((4, 1)), params)
        state = result[1]
        assert (result[4] == ((t + 1) % 5 == 0)).all()


def test_brax_refuses_a_second_time_limit():
    with pytest.raises(ValueError, match="time limit already"):
        brax_bridge.from_brax(_BraxLike(limited=True))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("brax") is None, reason="brax is not installed")
@pytest.mark.filterwarnings("ignore")  # brax's and mujoco's own
@pytest.mark.parametrize("name", ["fast", "inverted_pendulum"])
def test_real_brax(name):
    from brax import envs

    source = envs.get_environment(name)
    env = brax_bridge.make(name, max_steps=30)
    key = jax.random.key(0)
    actions = jax.random.uniform(key, (40, source.action_size), minval=-1.0)
    observation, reward, terminated, truncated, _ = _play(env, actions, key)
    state, step = source.reset(key), jax.jit(source.step)
    for t, action in enumerate(actions):
        state = step(state, action)
        np.testing.assert_allclose(observation[t], state.obs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reward[t], state.reward, rtol=1e-5, atol=1e-5)
        assert bool(terminated[t]) == bool(state.done)
    assert truncated.tolist() == [False] * 29 + [True] * 11
    assert env.observation_space(env.default_params).shape == (source.observation_size,)
    batch = wrappers.vectorize(env, 3)
    _, state = batch.reset(key, batch.default_params)
    step = jax.jit(batch.step)
    for t in range(31):
        state, _, _, cut = step(key, state, jnp.stack([actions[t]] * 3), batch.default_params)[1:5]
    assert not cut.any()


# gymnax


@pytest.mark.parametrize("name", ["CartPole-v1", "Breakout-MinAtar", "Catch-bsuite"])
def test_gymnax_satisfies_our_contract(name):
    env, params = gymnax.make(name)
    observation, state = env.reset(jax.random.key(0), params)
    space = env.observation_space(params)
    assert observation.shape == space.shape
    structure = jax.tree.structure((observation, state))

    def body(carry, key):
        action = env.action_space(params).sample(key)
        observation, state, reward, terminated, truncated, info = env.step(
            key, carry[1], action, params
        )
        shown = (reward, terminated, truncated, observation, info["final_observation"])
        return (observation, state), shown

    keys = jax.random.split(jax.random.key(1), 400)
    end, (reward, terminated, truncated, observation, final) = jax.jit(
        lambda c: jax.lax.scan(body, c, keys)
    )((observation, state))
    assert jax.tree.structure(end) == structure
    assert terminated.dtype == truncated.dtype == jnp.bool_ and reward.shape == (400,)
    done = np.array(terminated | truncated)
    changed = (np.array(observation) != np.array(final)).reshape(400, -1).any(-1)
    assert done.any() and not (changed & ~done).any() and changed.any()
    assert env.num_actions == env.action_space(params).n and isinstance(env.name, str)


@pytest.mark.parametrize("name", ["CartPole-v1", "Catch-bsuite"])
def test_gymnax_vectorizes_here(name):
    env = wrappers.vectorize(gymnax.make(name)[0], 4)
    observation, state = env.reset(jax.random.key(0), env.default_params)
    result = env.step(jax.random.key(1), state, jnp.zeros(4, jnp.int32), env.default_params)
    assert result[0].shape == observation.shape and result[0].shape[0] == 4


OURS = (acrobot, cartpole, mountain_car, mountain_car_continuous, pendulum)


@pytest.mark.parametrize("make", [*(module.make for module in OURS), probes.memory])
def test_ours_work_where_those_of_gymnax_are_expected(make):
    """What gymnax's users write: positional arguments, and these names only."""
    env, key = make(), jax.random.key(0)
    params = env.default_params
    observation, state = env.reset(key, params)
    assert observation.shape == env.observation_space(params).shape
    action = env.action_space(params).sample(key)
    observation, state, reward, terminated, truncated, info = env.step(key, state, action, params)
    assert observation.shape == env.observation_space(params).shape
    assert reward.shape == terminated.shape == truncated.shape == ()
    assert isinstance(info, dict) and isinstance(env.name, str)
    if action.shape == ():
        assert env.num_actions == env.action_space(params).n


def test_ours_under_a_wrapper_of_gymnax():
    env = gymnax.wrappers.purerl.LogWrapper(wrappers.auto_reset(cartpole.make()))
    params = env.default_params
    _, state = env.reset(jax.random.key(0), params)

    def body(state, key):
        state, _, _, _, info = env.step(key, state, jnp.int32(0), params)[1:]
        return state, info

    info = jax.lax.scan(body, state, jax.random.split(jax.random.key(1), 50))[1]
    assert info["returned_episode"].any()
    lengths = info["returned_episode_lengths"][info["returned_episode"]]
    assert ((lengths >= 8) & (lengths <= 11)).all()
