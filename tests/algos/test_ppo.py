"""PPO against loops in NumPy, and every variant as a member of one population."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl import loop, metrics, rollout
from jrl.algos import ppo
from jrl.distributions import Categorical
from jrl.envs import cartpole
from jrl.losses import trust_region

SMALL = ppo.Config(num_envs=4, num_steps=16, epochs=2, minibatches=4, hidden=(8,), eval_episodes=2)
HYPER = ppo.Hyper()
TABLE_1 = {
    "none": {"clip_eps": np.inf},
    **{f"clip{eps}": {"clip_eps": eps} for eps in (0.1, 0.2, 0.3)},
    **{
        f"akl{d}": {"clip_eps": np.inf, "kl_beta": 1.0, "kl_target": d, "kl_adapt": 1.0}
        for d in (0.003, 0.01, 0.03)
    },
    **{f"kl{beta}": {"clip_eps": np.inf, "kl_beta": beta} for beta in (0.3, 1.0, 3.0, 10.0)},
}


def batch_of(setup, network, params, n, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return ppo.Batch(
        observation=normal(n, 4),
        reset=jnp.zeros(n, bool),
        carry=(),
        action=jnp.asarray(rng.integers(0, 2, n), jnp.int32),
        old=Categorical(normal(n, 2)),
        advantage=normal(n),
        target=normal(n),
        value=normal(n),
    )


@pytest.fixture(name="parts", scope="module")
def make_parts():
    setup = rollout.setup(cartpole.make(), SMALL)
    params = setup.network.init(jax.random.key(0))
    # The first policy is nearly uniform: scaled up, some ratios leave the clipping range.
    params = jax.tree.map(lambda x: 3 * x + 0.1, params)
    return setup.network, params, batch_of(setup, setup.network, params, 64)


@pytest.mark.parametrize("name", TABLE_1)
def test_objective_equals_a_loop(parts, name):
    network, params, batch = parts
    hp = dataclasses.replace(HYPER, **TABLE_1[name], entropy_coef=0.03, value_clip=0.4)
    extra = {"kl": trust_region.init_kl_penalty(hp.kl_beta, hp.kl_target)}
    loss = jax.jit(ppo.make_objective(network))(params, extra, batch, jax.random.key(0), hp)

    (policy, v), _ = network.apply(params, (), batch.observation, batch.reset)
    logits, old = np.asarray(policy.logits, float), np.asarray(batch.old.logits, float)
    total, clipped = 0.0, 0
    for i in range(64):
        p, q = (np.exp(x[i]) / np.exp(x[i]).sum() for x in (logits, old))
        a, advantage = int(batch.action[i]), float(batch.advantage[i])
        ratio = p[a] / q[a]
        kept = min(max(ratio, 1 - hp.clip_eps), 1 + hp.clip_eps)
        clipped += abs(ratio - 1) > hp.clip_eps
        kl, entropy = np.sum(q * np.log(q / p)), -np.sum(p * np.log(p))
        value, before, target = (float(x[i]) for x in (v, batch.value, batch.target))
        near = min(max(value, before - 0.4), before + 0.4)
        total += -min(ratio * advantage, kept * advantage) + hp.kl_beta * kl - 0.03 * entropy
        total += 0.5 * 0.5 * max((value - target) ** 2, (near - target) ** 2)
    assert loss.weight == 64
    np.testing.assert_allclose(loss.total, total, rtol=1e-4)
    np.testing.assert_allclose(loss.metrics["clipped"][0], clipped)


def test_a_population_of_all_settings_equals_separate_runs():
    """The eleven rows of Table 1 are one program; no member feels the others."""
    algorithm = ppo.make(cartpole.make(), SMALL)
    settings = [dataclasses.replace(HYPER, **changes) for changes in TABLE_1.values()]
    stacked = jax.tree.map(lambda *x: jnp.array(x, jnp.float32), *settings)
    keys = jnp.broadcast_to(jax.random.key(1), (len(settings),))
    members, history = loop.train(algorithm, keys, stacked, iterations=3)
    for i in (0, 2, 5, 10):
        one = jax.tree.map(lambda x: jnp.array([x], jnp.float32), settings[i])
        alone, _ = loop.train(algorithm, keys[:1], one, iterations=3)
        pairs = zip(
            jax.tree.leaves(members.state.train.params),
            jax.tree.leaves(alone.state.train.params),
            strict=True,
        )
        for together, apart in pairs:
            np.testing.assert_allclose(together[i], apart[0], atol=2e-5)
    beta = metrics.mean(history)["kl_beta"][0]
    np.testing.assert_allclose(beta[:4], 0)
    np.testing.assert_allclose(beta[7:], [0.3, 1, 3, 10], rtol=1e-6)
    # Small steps stay below every target, so the adaptive penalty halves after each iteration.
    np.testing.assert_allclose(beta[4:7], (0.5 + 0.25 + 0.125) / 3, rtol=1e-6)


def test_the_first_ratio_is_one():
    """Before anything is learnt no ratio is clipped and the KL divergence is exactly zero."""
    config = dataclasses.replace(SMALL, epochs=1, minibatches=1, normalize_observation=True)
    algorithm = ppo.make(cartpole.make(), config)
    hp = dataclasses.replace(HYPER, learning_rate=0.0, clip_eps=1e-6)
    state = jax.jit(algorithm.init)(jax.random.key(0), hp)
    for _ in range(2):
        state, sums = jax.jit(algorithm.iterate)(state, hp)
        means = metrics.mean(sums)
        assert means["kl"] == 0
        assert means["clipped"] == 0
        np.testing.assert_allclose(means["policy_loss"], 0, atol=1e-6)  # mean advantage


@pytest.mark.parametrize(("truncated", "ends"), [(False, 0.0), (True, 0.0), (True, 1.0)])
def test_truncation_bootstraps_unless_it_ends_and_termination_does_not(truncated, ends):
    hp = dataclasses.replace(HYPER, standardize=0.0, time_limit_ends=ends)
    setup = rollout.setup(cartpole.make(), SMALL)
    algorithm = ppo.make(cartpole.make(), SMALL)
    state = jax.jit(algorithm.init)(jax.random.key(0), HYPER)
    flag = jnp.ones((1, 4), bool)
    observation = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4, 4)), jnp.float32)
    step = rollout.Trajectory(
        observation=observation[0],
        reset=~flag,
        action=jnp.zeros((1, 4), jnp.int32),
        recorded=(),
        reward=jnp.ones((1, 4)),
        terminated=flag & (not truncated),
        truncated=flag & truncated,
        final_observation=observation[1],
        info={},
    )
    batch = jax.jit(lambda: ppo.prepare(setup, state.train, (), step, hp))()
    (_, v), _ = setup.network.apply(state.train.params, (), observation, jnp.zeros((2, 1, 4), bool))
    target = 1 + (HYPER.gamma * v[1, 0] if truncated and not ends else 0)
    np.testing.assert_allclose(batch.target, np.broadcast_to(target, 4), rtol=1e-5)
    np.testing.assert_allclose(batch.advantage, target - v[0, 0], rtol=1e-4)


def test_observation_statistics_are_those_of_what_was_seen():
    algorithm = ppo.make(cartpole.make(), dataclasses.replace(SMALL, normalize_observation=True))
    state = jax.jit(algorithm.init)(jax.random.key(0), HYPER)
    for _ in range(3):
        state, _ = jax.jit(algorithm.iterate)(state, HYPER)
    statistics = state.train.extra["observation"]
    assert statistics.count == 3 * SMALL.steps_per_iteration
    assert np.all(statistics.variance > 0)


def test_the_old_policy_is_the_one_that_acted():
    """Also where observations are standardised by statistics that the rollout itself changes."""
    config = dataclasses.replace(SMALL, normalize_observation=True)
    setup = rollout.setup(cartpole.make(), config)
    algorithm = ppo.make(cartpole.make(), config)
    state = jax.jit(algorithm.init)(jax.random.key(0), HYPER)
    state, _ = jax.jit(algorithm.iterate)(state, HYPER)
    learner = state.train
    encode = lambda x: metrics.normalize(learner.extra["observation"], x)  # noqa: E731
    act = setup.policy(learner.params, encode=encode)

    def acting(key, carry, observation, reset):
        action, carry, _ = act(key, carry, observation, reset)
        (distribution, _), _ = setup.network.apply(learner.params, (), encode(observation), reset)
        return action, carry, distribution.log_prob(action)

    @jax.jit
    def both():
        key, env_params = jax.random.key(1), setup.env_params
        _, trajectory = rollout.unroll(key, setup.batch, env_params, acting, state.actor, 16)
        batch = ppo.prepare(setup, learner, (), trajectory, HYPER)
        return trajectory.recorded.ravel(), batch.old.log_prob(batch.action)

    np.testing.assert_allclose(*both(), atol=1e-6)
    after, _ = jax.jit(algorithm.iterate)(state, HYPER)
    assert np.any(after.train.extra["observation"].mean != learner.extra["observation"].mean)


def test_what_follows_a_terminated_step_may_be_infinite():
    setup = rollout.setup(cartpole.make(), SMALL)
    state = jax.jit(ppo.make(cartpole.make(), SMALL).init)(jax.random.key(0), HYPER)
    _, step = jax.jit(
        lambda: rollout.unroll(
            jax.random.key(1),
            setup.batch,
            setup.env_params,
            setup.policy(state.train.params),
            state.actor,
            64,
        )
    )()
    assert np.any(step.terminated)
    final = jnp.where(step.terminated[..., None], jnp.inf, step.final_observation)
    dirty = step.replace(final_observation=final)
    clean, same = (ppo.prepare(setup, state.train, (), x, HYPER) for x in (step, dirty))
    np.testing.assert_array_equal(clean.advantage, same.advantage)


def test_bfloat16_computes_in_bfloat16():
    """The products run in half precision; parameters, sums and weights stay in float32."""
    config = dataclasses.replace(SMALL, compute_dtype="bfloat16")
    algorithm = ppo.make(cartpole.make(), config)
    state = jax.jit(algorithm.init)(jax.random.key(0), HYPER)
    text = str(jax.make_jaxpr(algorithm.iterate)(state, HYPER))
    assert "bf16[16,8] = dot_general" in text
    after, sums = jax.jit(algorithm.iterate)(state, HYPER)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((after.train.params, sums)))
    exact, _ = jax.jit(ppo.make(cartpole.make(), SMALL).iterate)(state, HYPER)
    for x, y in zip(*(jax.tree.leaves(s.train.params) for s in (after, exact)), strict=True):
        np.testing.assert_allclose(x, y, atol=5e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("num_steps", -1),
        ("minibatches", 3),
        ("microbatches", 5),
        ("hidden", (0,)),
        ("compute_dtype", "int8"),
    ],
)
def test_sizes_that_do_not_fit_name_the_field(field, value):
    with pytest.raises(ValueError, match=field) as error:
        ppo.make(cartpole.make(), dataclasses.replace(SMALL, **{field: value}))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_cartpole_is_solved():
    """At least 475 over ten seeds and 500k steps, where CleanRL reaches 490.

    Ten, since seeds differ: at 300k steps those of one draw ended between 330 and 500.
    """
    config = ppo.Config(num_envs=4, num_steps=128, total_steps=500_000)
    hp = ppo.Hyper(learning_rate=2.5e-4, anneal=1.0, entropy_coef=0.01, value_clip=0.2)
    hps = jax.tree.map(lambda x: jnp.full(10, x), hp)
    keys = jax.random.split(jax.random.key(0), 10)
    algorithm = ppo.make(cartpole.make(), config)
    _, history = loop.train(algorithm, keys, hps, iterations=500_000 // 512)
    assert np.mean(metrics.mean(history)["eval/return"]) >= 475
