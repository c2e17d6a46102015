"""Wrappers against loops over single environments, and statistics against NumPy."""

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jrl import metrics, rng
from jrl.envs import cartpole, pendulum, wrappers
from jrl.envs.environment import Environment
from jrl.envs.spaces import Box
from jrl.types import Leaf

KEY = jax.random.key(0)
T, N = 24, 5


class Walk(struct.PyTreeNode):
    """Steps taken, and the step at which the episode ends."""

    time: Leaf
    length: Leaf


def walk():
    """Makes a task of random length: it shows (t, length), the reward is action * t.

    Episodes of even length terminate and those of odd length are truncated. No step draws.
    """

    def observe(state):
        return jnp.stack([state.time, state.length]).astype(jnp.float32)

    def reset(key, params):
        state = Walk(jnp.int32(0), jax.random.randint(key, (), 2, 8))
        return observe(state), state

    def step(key, state, action, params):
        state = state.replace(time=state.time + 1)
        over, even = state.time >= state.length, state.length % 2 == 0
        reward = action * state.time.astype(jnp.float32)
        return observe(state), state, reward, over & even, over & ~even, {"time": state.time}

    def box(params):
        return Box(-1.0, 1.0, (2,))

    return Environment("Walk", reset, step, box, lambda params: Box(0.0, 4.0, ()), ())


def actions(n=N):
    return jnp.asarray(np.random.default_rng(0).normal(size=(T, n)), jnp.float32)


def unroll(env, key=KEY, given=None):
    """Returns (first observation, per-step arrays, states) of a vector environment."""
    given = actions(getattr(env, "num_envs", None)) if given is None else given

    def run(key):
        observation, state = env.reset(key, env.default_params)

        def body(state, x):
            observation, state, *rest = env.step(x[0], state, x[1], env.default_params)
            return state, (observation, *rest, state)

        keys = jax.random.split(jax.random.fold_in(key, 1), len(given))
        return observation, jax.lax.scan(body, state, (keys, given))[1]

    return jax.jit(run)(key)


def close(actual, expected, rtol=1e-5, atol=1e-5):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), actual, expected
    )


# --- auto-reset and batches ---


def test_auto_reset_keeps_the_last_observation():
    env = wrappers.auto_reset(walk())
    first, (observation, reward, terminated, truncated, info, _) = unroll(
        env, given=actions(1)[:, 0]
    )
    time, length = 0, int(first[1])
    ends = 0
    for t in range(T):
        time += 1
        np.testing.assert_array_equal(info["final_observation"][t], [time, length])
        np.testing.assert_allclose(reward[t], actions(1)[t, 0] * time, rtol=1e-6)
        over = time >= length
        assert bool(terminated[t]) == (over and length % 2 == 0)
        assert bool(truncated[t]) == (over and length % 2 == 1)
        if over:
            time, length, ends = 0, int(observation[t, 1]), ends + 1
        np.testing.assert_array_equal(observation[t], [time, length])
    assert ends >= 3


def test_vectorize_equals_stepping_each_environment_with_its_keys():
    env, single = wrappers.vectorize(walk(), N), walk()
    first, (observation, reward, terminated, truncated, info, _) = unroll(env)
    keys = jax.random.split(jax.random.fold_in(KEY, 1), T)
    for i in range(N):
        seen, state = single.reset(rng.batch_keys(KEY, (N,))[i], ())
        np.testing.assert_array_equal(first[i], seen)
        for t in range(T):
            step_keys, reset_keys = rng.batch_keys(keys[t], (2, N))
            seen, state, *rest, more = single.step(step_keys[i], state, actions()[t, i], ())
            np.testing.assert_array_equal(info["final_observation"][t, i], seen)
            assert int(info["time"][t, i]) == int(more["time"])
            if rest[1] or rest[2]:
                seen, state = single.reset(reset_keys[i], ())
            np.testing.assert_array_equal(observation[t, i], seen)
            close((reward[t, i], terminated[t, i], truncated[t, i]), tuple(rest))


@pytest.mark.parametrize("wrap", [lambda e: e, wrappers.normalize_observation])
def test_draw_and_advance_equal_step(wrap):
    env = wrap(wrappers.vectorize(wrappers.episode_statistics(cartpole.make()), 3))
    observation, state = env.reset(KEY, env.default_params)
    action = jnp.array([0, 1, 1])
    step = env.step(KEY, state, action, env.default_params)
    noise = jax.vmap(env.draw, (0, None))(jnp.stack([KEY, KEY]), env.default_params)
    advanced = env.advance(jax.tree.map(lambda x: x[1], noise), state, action, env.default_params)
    jax.tree.map(np.testing.assert_array_equal, step, advanced)


def test_environments_of_a_batch_differ():
    first, (observation, *_) = unroll(wrappers.vectorize(walk(), 64), given=jnp.zeros((T, 64)))
    assert set(np.unique(first[:, 1])) == set(range(2, 8))
    assert len({tuple(row) for row in np.asarray(observation[..., 1]).T}) > 60


@pytest.mark.parametrize("count", [0, -1])
def test_sizes_must_be_positive(count):
    with pytest.raises(ValueError, match=f"num_envs must be at least 1, got {count}"):
        wrappers.vectorize(walk(), count)
    with pytest.raises(ValueError, match=f"max_steps must be at least 1, got {count}"):
        wrappers.time_limit(walk(), count)


def test_gymnax_environment_keeps_its_last_observation_and_its_two_ends():
    raw, params = gymnax.make("CartPole-v1")
    params = params.replace(max_steps_in_episode=12)
    env = wrappers.vectorize(raw, N)._replace(default_params=params)
    # The first two push one way and fall over, the others balance until the limit.
    steps = jnp.arange(60)[:, None]
    given = jnp.where(jnp.arange(N)[None] < 2, 0, steps % 2)
    first, (observation, _, terminated, truncated, info, _) = unroll(env, given=given)
    before = np.concatenate([first[None], observation[:-1]])
    final, done = np.asarray(info["final_observation"]), np.asarray(terminated | truncated)
    # x moves by tau x' in every step, those that end an episode included.
    np.testing.assert_allclose(final[..., 0], before[..., 0] + 0.02 * before[..., 1], atol=1e-6)
    np.testing.assert_array_equal(final[~done], np.asarray(observation)[~done])
    assert np.abs(np.asarray(observation)[done]).max() <= 0.05
    assert terminated[:, :2].sum() >= 4 and not truncated[:, :2].any()
    assert truncated[:, 2:].sum() == 15 and not terminated[:, 2:].any()
    assert (np.abs(final[np.asarray(terminated)][:, 2]) > 12 * np.pi / 180).all()


# --- single wrappers ---


@pytest.mark.parametrize("limit", [1, 3, 5])
def test_time_limit_truncates(limit):
    env = wrappers.vectorize(wrappers.time_limit(walk(), limit), N)
    first, (observation, _, terminated, truncated, info, _) = unroll(env)
    before = np.concatenate([first[None], observation[:-1]])
    time, length = info["time"], before[..., 1]
    over = time >= length
    np.testing.assert_array_equal(terminated, over & (length % 2 == 0))
    np.testing.assert_array_equal(truncated, (time >= limit) | over & (length % 2 == 1))
    assert int(time.max()) <= limit


def test_episode_statistics_equal_a_loop():
    env = wrappers.vectorize(wrappers.episode_statistics(walk()), N)
    _, (_, reward, terminated, truncated, info, _) = unroll(env)
    total, length = np.zeros(N), np.zeros(N, int)
    for t in range(T):
        total, length = total + reward[t], length + 1
        np.testing.assert_allclose(info["episode_return"][t], total, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(info["episode_length"][t], length)
        done = np.asarray(terminated[t] | truncated[t])
        total, length = np.where(done, 0, total), np.where(done, 0, length)


def test_scale_action_maps_the_unit_box_onto_the_bounds():
    plain, scaled = pendulum.make(), wrappers.scale_action(pendulum.make())
    params = plain.default_params
    space = scaled.action_space(params)
    assert (space.low, space.high, space.shape) == (-1.0, 1.0, (1,))
    _, state = plain.reset(KEY, params)
    for unit, torque in ((-1.0, -2.0), (0.0, 0.0), (0.5, 1.0), (1.0, 2.0)):
        expected = plain.step(KEY, state, jnp.array([torque]), params)
        close(scaled.step(KEY, state, jnp.array([unit]), params), expected)


def test_scale_action_of_unequal_bounds():
    env = wrappers.scale_action(walk())
    _, state = env.reset(KEY, ())
    rewards = [float(env.step(KEY, state, jnp.float32(a), ())[2]) for a in (-1, 0, 1)]
    assert rewards == [0.0, 2.0, 4.0]


# --- shared statistics ---


def test_normalize_observation_equals_numpy():
    plain = wrappers.vectorize(walk(), N)
    first, (observation, *_, info, _) = unroll(plain)
    env = wrappers.normalize_observation(plain, clip=2.0)
    seen, (normalized, reward, *_, normalized_info, states) = unroll(env)
    shown = np.concatenate([first[None], observation])

    def expected(x, upto):
        sample = np.float64(shown[:upto]).reshape(-1, 2)
        return np.clip((np.asarray(x) - sample.mean(0)) / np.sqrt(sample.var(0) + 1e-8), -2, 2)

    # Of the first observations the times are all 0: only the lengths have a spread.
    np.testing.assert_allclose(seen[:, 1], expected(first, 1)[:, 1], atol=1e-4)
    for t in range(T):
        np.testing.assert_allclose(normalized[t], expected(observation[t], t + 2), atol=1e-4)
        final = expected(info["final_observation"][t], t + 2)
        np.testing.assert_allclose(normalized_info["final_observation"][t], final, atol=1e-4)
    assert float(states.own.count[-1]) == (T + 1) * N


def test_statistics_of_two_batches_merge_to_those_of_both():
    env = wrappers.normalize_observation(wrappers.vectorize(walk(), N))
    a, b = (unroll(env, jax.random.key(i))[1][-1].own for i in range(2))
    a, b = (jax.tree.map(lambda x: x[-1], s) for s in (a, b))
    plain = wrappers.vectorize(walk(), N)
    runs = [unroll(plain, jax.random.key(i)) for i in range(2)]
    sample = np.concatenate([np.r_[f[None], o[0]].reshape(-1, 2) for f, o in runs])
    both = metrics.merge(a, b)
    assert float(both.count) == len(sample)
    np.testing.assert_allclose(both.mean, sample.mean(0), rtol=1e-5)
    np.testing.assert_allclose(both.variance, sample.var(0), rtol=1e-4)


def test_normalize_reward_equals_numpy():
    gamma, plain = 0.9, wrappers.vectorize(walk(), N)
    _, (_, reward, terminated, truncated, *_) = unroll(plain)
    env = wrappers.normalize_reward(plain, gamma, clip=1.5)
    _, (_, scaled, *_, states) = unroll(env)
    g, sample = np.zeros(N), []
    for t in range(T):
        g = gamma * g + np.float64(reward[t])
        sample.append(g)
        expected = reward[t] / np.sqrt(np.var(np.concatenate(sample)) + 1e-8)
        np.testing.assert_allclose(scaled[t], np.clip(expected, -1.5, 1.5), rtol=1e-4, atol=1e-5)
        g = np.where(terminated[t] | truncated[t], 0, g)
    np.testing.assert_allclose(states.own[1][-1], g, rtol=1e-4, atol=1e-5)


def test_all_wrappers_together_keep_the_contract():
    env = wrappers.episode_statistics(
        wrappers.time_limit(wrappers.scale_action(pendulum.make()), 7)
    )
    env = wrappers.normalize_observation(wrappers.vectorize(env, N))
    env = wrappers.normalize_reward(env, 0.99)
    given = jnp.zeros((T, N, 1))
    first, (observation, reward, terminated, truncated, info, _) = unroll(env, given=given)
    assert first.shape == (N, 3) and observation.shape == (T, N, 3) and reward.shape == (T, N)
    assert terminated.dtype == truncated.dtype == bool and reward.dtype == jnp.float32
    np.testing.assert_array_equal(np.flatnonzero(truncated[:, 0]), [6, 13, 20])
    assert info["episode_length"][6].tolist() == [7] * N
    assert env.action_space(env.default_params).high == 1.0


def test_discrete_actions_cannot_be_scaled():
    with pytest.raises(ValueError, match="CartPole-v1 has no Box of actions to scale"):
        wrappers.scale_action(cartpole.make())
