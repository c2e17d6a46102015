"""The probes by hand, and their solutions against returns measured with the contract itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl.envs import probes

GAMMA = 0.9
DISCRETE = {
    probes.constant_value: 1,
    probes.observation_value: 1,
    probes.discounted_value: 2,
    probes.policy: 1,
    probes.policy_and_value: 1,
    probes.memory: 4,
}
CONTINUOUS = {probes.continuous_policy: 1, probes.continuous_policy_and_value: 1}
EVERY = DISCRETE | CONTINUOUS


def _episode(env, state, actions):
    """Returns (observations, rewards, terminated), the first observation included."""
    step, rows = jax.jit(env.step), []
    for action in actions:
        observation, state, reward, terminated, truncated, info = step(
            jax.random.key(0), state, action, env.default_params
        )
        assert reward.dtype == jnp.float32 and not truncated and info == {}
        rows.append((np.array(observation), float(reward), bool(terminated)))
    return rows


def _starts(env):
    """Returns one start for each cue, found by resetting."""
    observations, states = jax.vmap(env.reset, (0, None))(
        jax.random.split(jax.random.key(0), 64), env.default_params
    )
    cues = np.unique(states.cue)
    assert cues.tolist() == list(range(env.default_params.observations.shape[1]))
    picked = [int(np.argmax(states.cue == cue)) for cue in cues]
    return [(observations[i], jax.tree.map(lambda x, i=i: x[i], states)) for i in picked]


@pytest.mark.parametrize(("make", "length"), DISCRETE.items())
def test_solution_is_the_best_return_of_all_action_sequences(make, length):
    env = make()
    solution = probes.solve(env.default_params, GAMMA)
    assert solution.value.shape == (length, len(_starts(env)))
    discounts = GAMMA ** np.arange(length)
    for cue, (observation, start) in enumerate(_starts(env)):
        returns = {}
        for actions in itertools.product(range(env.num_actions), repeat=length):
            rows = _episode(env, start, jnp.array(actions, jnp.int32))
            shown = [observation, *(row[0] for row in rows)]
            np.testing.assert_array_equal(shown[:-1], solution.observation[:, cue])
            np.testing.assert_array_equal(shown[-1], shown[-2])
            assert [row[2] for row in rows] == [False] * (length - 1) + [True]
            returns[actions] = float(np.sum(discounts * [row[1] for row in rows]))
        best = max(returns.values())
        np.testing.assert_allclose(solution.value[0, cue], best, rtol=1e-6)
        chosen = (0,) * (length - 1) + (int(solution.action[cue]),)
        np.testing.assert_allclose(returns[chosen], best, rtol=1e-6)
        for action in range(env.num_actions):
            reached = max(g for a, g in returns.items() if a[0] == action)
            np.testing.assert_allclose(solution.action_value[0, cue, action], reached, rtol=1e-6)


def test_known_values():
    values = {make: probes.solve(make().default_params, GAMMA).value for make in EVERY}
    assert values[probes.constant_value].tolist() == [[1]]
    assert values[probes.observation_value].tolist() == [[-1, 1]]
    np.testing.assert_allclose(values[probes.discounted_value], [[GAMMA], [1]])
    assert values[probes.policy].tolist() == [[1]]
    assert values[probes.policy_and_value].tolist() == [[1, 1]]
    assert values[probes.continuous_policy].tolist() == [[0]]
    assert values[probes.continuous_policy_and_value].tolist() == [[0, 0]]
    expected = np.repeat(GAMMA ** np.arange(3.0, -1, -1)[:, None], 2, axis=1)
    np.testing.assert_allclose(values[probes.memory], expected, rtol=1e-6)
    assert probes.solve(probes.policy().default_params, GAMMA).action.tolist() == [1]
    for probe in (probes.policy_and_value, probes.memory):
        assert probes.solve(probe().default_params, GAMMA).action.tolist() == [0, 1]


@pytest.mark.parametrize("make", CONTINUOUS)
def test_continuous_rewards(make):
    env = make()
    solution = probes.solve(env.default_params, GAMMA)
    assert solution.action_value is None
    for cue, (observation, start) in enumerate(_starts(env)):
        target = 0.5 if make is probes.continuous_policy else 0.5 * float(observation[0])
        assert solution.action[cue].tolist() == [target]
        for action in (-2.0, -0.5, 0.0, 0.5, 1.0):
            ((_, reward, terminated),) = _episode(env, start, jnp.full((1, 1), action))
            assert terminated
            np.testing.assert_allclose(reward, -((action - target) ** 2), atol=1e-6)


@pytest.mark.parametrize("length", [2, 3, 7])
def test_memory_shows_the_cue_only_at_first(length):
    solution = probes.solve(probes.memory(length).default_params, GAMMA)
    cue, answer = solution.observation[..., 0], solution.observation[..., 1]
    assert cue[0].tolist() == [-1, 1] and not cue[1:].any()
    assert answer[-1].all() and not answer[:-1].any()
    np.testing.assert_allclose(solution.value[0], GAMMA ** (length - 1), rtol=1e-6)


def test_memory_refuses_to_be_trivial():
    with pytest.raises(ValueError, match="at least 2"):
        probes.memory(1)


@pytest.mark.parametrize("make", EVERY)
def test_contract(make):
    env = make()
    params = env.default_params
    observations, states = jax.jit(jax.vmap(env.reset, (0, None)))(
        jax.random.split(jax.random.key(0), 2000), params
    )
    space = env.observation_space(params)
    assert observations.shape[1:] == space.shape and observations.dtype == jnp.float32
    assert space.contains(observations)
    counts = np.bincount(states.cue)
    assert (np.abs(counts / 2000 - 1 / len(counts)) < 0.05).all()
    actions = jax.vmap(env.action_space(params).sample)(jax.random.split(jax.random.key(1), 2000))
    keys = jax.random.split(jax.random.key(2), 2000)
    result = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))(keys, states, actions, params)
    assert jax.tree.structure(result[1]) == jax.tree.structure(states)
    assert [x.dtype for x in result[2:5]] == [jnp.float32, jnp.bool_, jnp.bool_]
    _, state = env.reset(jax.random.key(0), params)
    step = jax.make_jaxpr(env.step)(jax.random.key(0), state, actions[0], params)
    assert "random" not in str(step)


def test_vmap_over_parameters():
    """Eight bandits at once, each with its own better arm."""
    env = probes.policy()
    rewards = jnp.where(jnp.arange(2)[None, None] == (jnp.arange(8) % 2)[:, None, None], 1.0, -1.0)
    params = jax.vmap(lambda r: env.default_params.replace(rewards=r))(rewards)
    _, state = env.reset(jax.random.key(0), env.default_params)
    step = jax.vmap(env.step, (None, None, None, 0))
    reward = step(jax.random.key(0), state, jnp.int32(1), params)[2]
    assert reward.tolist() == [-1, 1] * 4
    solution = jax.vmap(probes.solve, (0, None))(params, GAMMA)
    assert solution.action.ravel().tolist() == [0, 1] * 4
