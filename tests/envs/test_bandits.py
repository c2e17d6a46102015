"""Bandit environments against closed forms, NumPy loops and the law of large numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl.envs import bandits

ENVIRONMENTS = {
    "bernoulli": bandits.make_bernoulli,
    "gaussian": bandits.make_gaussian,
    "contextual": bandits.make_contextual,
    "drifting": bandits.make_drifting,
    "adversarial": bandits.make_adversarial,
}


def pulls(env, params, action, count, seed=0):
    """Pulls one arm once in each of `count` fresh copies of the bandit."""

    def pull(key):
        first, second = jax.random.split(key)
        observation, state = env.reset(first, params)
        _, _, reward, _, _, info = env.step(second, state, jnp.int32(action), params)
        return observation, reward, info["regret"]

    return jax.jit(jax.vmap(pull))(jax.random.split(jax.random.key(seed), count))


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_contract(kind):
    env = ENVIRONMENTS[kind]()
    params = env.default_params
    observation, state = jax.jit(env.reset)(jax.random.key(0), params)
    assert env.observation_space(params).contains(observation)
    assert observation.shape == env.observation_space(params).shape
    step = jax.jit(env.step)
    for time in range(3):
        action = jnp.int32(time % env.num_actions)
        following, after, reward, terminated, truncated, info = step(
            jax.random.key(time), state, action, params
        )
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        assert following.shape == observation.shape
        assert reward.dtype == info["regret"].dtype == jnp.float32
        assert reward.shape == terminated.shape == truncated.shape == info["regret"].shape == ()
        assert not terminated
        assert terminated.dtype == truncated.dtype == jnp.bool_
        assert after.time == time + 1
        state = after


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_one_step_episodes_terminate_and_horizons_truncate(kind):
    env = ENVIRONMENTS[kind](one_step=True, max_steps_in_episode=2)
    _, state = env.reset(jax.random.key(0), env.default_params)
    for expected in (False, True):
        step = env.step(jax.random.key(1), state, jnp.int32(0), env.default_params)
        _, state, _, terminated, truncated, _ = step
        assert terminated
        assert bool(truncated) is expected


def test_bernoulli_rewards_and_exact_regret():
    means = (0.2, 0.9)
    env = bandits.make_bernoulli(means)
    for action, mean in enumerate(means):
        _, rewards, regrets = pulls(env, env.default_params, action, 20_000)
        assert set(np.unique(rewards)) == {0.0, 1.0}
        assert abs(rewards.mean() - mean) < 4 * math.sqrt(mean * (1 - mean) / 20_000)
        np.testing.assert_allclose(regrets, 0.9 - mean, atol=1e-6)


def test_bernoulli_certain_arms_never_err():
    env = bandits.make_bernoulli((0.0, 1.0))
    assert pulls(env, env.default_params, 0, 10_000)[1].max() == 0
    assert pulls(env, env.default_params, 1, 10_000)[1].min() == 1


def test_gaussian_moments():
    env = bandits.make_gaussian((-1.0, 2.0), noise=0.5)
    _, rewards, regrets = pulls(env, env.default_params, 0, 40_000)
    assert abs(rewards.mean() + 1) < 4 * 0.5 / 200
    assert abs(rewards.std() - 0.5) < 0.01
    np.testing.assert_allclose(regrets, 3.0)


def test_contextual_rewards_are_linear_in_the_context():
    weights = np.array([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]], np.float32)
    env = bandits.make_contextual(weights, noise=0.1)
    for action in range(2):
        contexts, rewards, regrets = pulls(env, env.default_params, action, 5_000)
        fitted = np.linalg.lstsq(np.asarray(contexts), np.asarray(rewards), rcond=None)[0]
        np.testing.assert_allclose(fitted, weights[action], atol=0.01)
        means = np.asarray(contexts) @ weights.T
        np.testing.assert_allclose(regrets, means.max(1) - means[:, action], atol=1e-5)
    assert abs(np.asarray(contexts).var() - 1) < 0.05


def test_contextual_shows_the_context_it_pays_for():
    env = bandits.make_contextual(noise=0.0)
    params = env.default_params
    observation, state = env.reset(jax.random.key(0), params)
    for time in range(5):
        expected = params.weights[1] @ observation
        observation, state, reward, *_ = env.step(jax.random.key(time), state, jnp.int32(1), params)
        np.testing.assert_allclose(reward, expected, rtol=1e-5)


def test_drifting_means_walk():
    env = bandits.make_drifting((1.0, 0.0), drift=0.1, noise=0.0)
    params = env.default_params

    def walk(key):
        def advance(state, key):
            before = state.memory
            _, state, reward, _, _, info = env.step(key, state, jnp.int32(1), params)
            return state, (before, reward, info["regret"])

        _, state = env.reset(key, params)
        return jax.lax.scan(advance, state, jax.random.split(key, 50))

    state, (before, rewards, regrets) = jax.jit(jax.vmap(walk))(
        jax.random.split(jax.random.key(0), 4000)
    )
    np.testing.assert_array_equal(rewards, before[..., 1])
    np.testing.assert_allclose(regrets, before.max(-1) - before[..., 1], atol=1e-6)
    np.testing.assert_allclose(state.memory.mean(0), [1.0, 0.0], atol=0.05)
    np.testing.assert_allclose(state.memory.var(0), 50 * 0.1**2, rtol=0.1)


def test_adversarial_pays_the_table_and_counts_regret_in_hindsight():
    table = np.random.default_rng(0).random((6, 3)).astype(np.float32)
    env = bandits.make_adversarial(table)
    _, state = env.reset(jax.random.key(0), env.default_params)
    actions, total = [2, 0, 1, 1, 2, 0], 0.0
    for time, action in enumerate(actions):
        _, state, reward, _, truncated, info = env.step(
            jax.random.key(0), state, jnp.int32(action), env.default_params
        )
        assert reward == table[time, action]
        assert bool(truncated) is (time == 5)
        total += float(info["regret"])
    earned = table[np.arange(6), actions].sum()
    np.testing.assert_allclose(total, table.sum(0).max() - earned, rtol=1e-5)


def test_environments_vmap_over_their_parameters():
    env = bandits.make_bernoulli()
    keys = jax.random.split(jax.random.key(0), 500)
    params = jax.vmap(bandits.sample_bernoulli, in_axes=(0, None))(keys, 7)

    def regret(key, params):
        _, state = env.reset(key, params)
        return env.step(key, state, jnp.int32(3), params)[-1]["regret"]

    # `None` leaves: a Python number in the default fields is not batched.
    axes = bandits.BernoulliParams(0, None, None)
    params = bandits.BernoulliParams(params.means)
    regrets = jax.jit(jax.vmap(regret, in_axes=(0, axes)))(keys, params)
    means = np.asarray(params.means)
    np.testing.assert_allclose(regrets, means.max(1) - means[:, 3], atol=1e-6)
    assert env.action_space(bandits.sample_bernoulli(keys[0], 7)).n == 7


def test_samplers():
    key = jax.random.key(1)
    keys = jax.random.split(key, 2000)
    means = jax.vmap(lambda k: bandits.sample_gaussian(k, 10, 2.0).means)(keys)
    assert abs(means.std() - 2.0) < 0.05
    weights = bandits.sample_contextual(key, 500, 16).weights
    assert weights.shape == (500, 16)
    assert abs(np.square(weights).sum(-1).mean() - 1) < 0.05
    np.testing.assert_array_equal(bandits.sample_drifting(key, 4).means, np.zeros(4))
    table = bandits.sample_adversarial(key, 4000, 3, 2).rewards
    assert table.shape == (4000, 3)
    assert set(np.unique(table)) == {0.0, 1.0}
    halves = np.asarray(table).reshape(2, 2000, 3).mean(1)
    assert np.abs(halves[0] - halves[1]).max() > 0.1


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: bandits.bernoulli_params([0.5, 1.5]), "means"),
        (lambda: bandits.bernoulli_params([]), "means"),
        (lambda: bandits.bernoulli_params([[0.5]]), "means"),
        (lambda: bandits.gaussian_params([0.0, float("nan")]), "means"),
        (lambda: bandits.gaussian_params([0.0], noise=-1.0), "noise"),
        (lambda: bandits.contextual_params([1.0, 2.0]), "weights"),
        (lambda: bandits.drifting_params([0.0], drift=-0.1), "drift"),
        (lambda: bandits.adversarial_params([1.0]), "rewards"),
        (lambda: bandits.sample_bernoulli(jax.random.key(0), 0), "num_arms"),
        (lambda: bandits.sample_contextual(jax.random.key(0), 2, 0), "dimension"),
        (lambda: bandits.sample_adversarial(jax.random.key(0), 0, 2), "horizon"),
    ],
)
def test_bad_input_names_the_field(build, field):
    with pytest.raises(ValueError, match=f"^{field}: [^\n]+$"):
        build()
