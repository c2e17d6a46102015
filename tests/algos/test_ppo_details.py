"""The details that papers leave open: numbers of PPO's `Hyper`, each against doing without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrl import metrics, rollout, train
from jrl.algos import ppo
from jrl.envs import pendulum
from jrl.envs.wrappers import clip_action, vectorize

SMALL = ppo.Config(num_envs=4, num_steps=16, epochs=2, minibatches=4, hidden=(8,), eval_episodes=2)
HYPER = ppo.Hyper(learning_rate=1e-2)


def trained(iterations=2, config=SMALL, **hyper):
    algorithm = ppo.make(pendulum.make(), config)
    hp = dataclasses.replace(HYPER, **hyper)
    state, sums = jax.jit(algorithm.init)(jax.random.key(0), hp), {}
    iterate = jax.jit(algorithm.iterate)
    for _ in range(iterations):
        state, sums = iterate(state, hp)
    return state, {name: float(x) for name, x in metrics.mean(sums).items()}


def change(config, **fields):
    return dataclasses.replace(config, **fields)


def distance(a, b):
    a, b = (jax.tree.leaves(state.train.params) for state in (a, b))
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("config", "off"),
    [("normalize_observation", "filter_observation"), ("normalize_reward", "scale_reward")],
)
def test_statistics_that_are_switched_off_change_nothing(config, off):
    plain, _ = trained()
    on, _ = trained(config=change(SMALL, **{config: True}))
    without, _ = trained(config=change(SMALL, **{config: True}), **{off: 0.0})
    assert distance(plain, without) < 1e-5 < 1e-4 < distance(plain, on)


def test_a_minibatch_of_everything_is_standardised_as_the_batch():
    whole = change(SMALL, minibatches=1, epochs=1)
    batch, minibatch, neither = (
        trained(config=whole, iterations=1, standardize=how)[0] for how in (1.0, 2.0, 0.0)
    )
    assert distance(batch, minibatch) < 1e-5 < 1e-4 < distance(batch, neither)
    batch, minibatch = (trained(standardize=how)[0] for how in (1.0, 2.0))
    assert distance(batch, minibatch) > 1e-4


def test_every_minibatch_is_standardised_by_itself():
    seen = []

    def prepare(part):
        part = ppo._standardize(part, True)
        jax.debug.callback(seen.append, part)
        return part

    def objective(params, extra, batch, key, hp):
        return train.Loss(jnp.sum(params * 0), jnp.float32(1))

    step = train.make_train_step(train.gradient(objective), optax.sgd)
    state = train.init(jax.random.key(0), jnp.float32(0), optax.sgd, 0.1)
    train.train_epochs(step, state, jnp.arange(24.0) ** 2, jax.random.key(1), 0.1, 1, 3, prepare)
    jax.effects_barrier()
    assert len(seen) == 3
    for part in seen:
        np.testing.assert_allclose((np.mean(part), np.std(part)), (0, 1), atol=1e-5)


def test_the_first_policy_is_as_wide_as_asked_for():
    for log_std in (0.0, -1.0):
        state, _ = trained(iterations=0, log_std=log_std)
        np.testing.assert_array_equal(state.train.params["head"]["log_std"], log_std)


def test_actions_are_clipped_for_the_environment_and_not_for_learning():
    setup = rollout.setup(pendulum.make(), SMALL)

    def far(key, carry, observation, reset):
        return jnp.full((4, 1), 7.0), carry, ()

    def play(env):
        actor = rollout.start(jax.random.key(0), env, setup.env_params)
        return rollout.unroll(jax.random.key(1), env, setup.env_params, far, actor, 5)[1]

    # Pendulum clips torques by itself, so a task that does not tells the difference.
    def step(key, state, action, params):
        *rest, info = setup.env.step(key, state, action, params)
        return *rest, {**info, "applied": action}

    env = vectorize(setup.env._replace(step=step), 4)
    assert np.all(play(env).info["applied"] == 7)
    assert np.all(play(clip_action(env, 0.0)).info["applied"] == 7)
    clipped = play(clip_action(env))
    assert np.all(clipped.info["applied"] == 2) and np.all(clipped.action == 7)


def test_statistics_first_evaluate_the_old_policy_anew():
    config = change(SMALL, normalize_observation=True)
    early, late = (
        trained(1, config, learning_rate=0.0, clip_eps=1e-6, observe_first=first)
        for first in (1.0, 0.0)
    )
    for state, means in (early, late):
        assert means["kl"] == 0 and means["clipped"] == 0
        assert state.train.extra["observation"].count == SMALL.steps_per_iteration
    # Statistics of nothing leave observations as they are: only the early ones move the values.
    plain = trained(1, learning_rate=0.0)
    assert late[1]["value_loss"] == pytest.approx(plain[1]["value_loss"], rel=1e-6)
    assert abs(early[1]["value_loss"] - plain[1]["value_loss"]) > 1e-4


def test_diagnostics_are_quantiles():
    config = change(SMALL, diagnostics=True)
    state, means = trained(config=config, clip_eps=np.inf)
    for name in ("ratio", "kl", "grad_norm"):
        q1, q50, q99, q100 = (float(means[f"{name}_q{p}"]) for p in (1, 50, 99, 100))
        assert q1 < q50 < q99 < q100
    assert means["kl_q1"] < means["kl"] < means["kl_q100"]
    assert means["grad_norm_q1"] < means["grad_norm"] < means["grad_norm_q100"]
    _, still = trained(config=config, learning_rate=0.0)
    assert still["ratio_q1"] == still["ratio_q100"] == 1 and still["kl_q100"] == 0
    columns = {"x": jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32)}
    for name, (value, _) in ppo._diagnostics(**columns).items():
        expected = np.quantile(columns["x"], int(name.removeprefix("x_q")) / 100)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_an_update_that_was_skipped_has_an_infinite_norm():
    norms = ppo._norms((jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])))
    np.testing.assert_array_equal(norms, [1, np.inf])


def test_an_adaptive_beta_stays_a_number_and_a_fixed_one_as_it_is():
    for beta, adapt, then in (
        (1e-30, 1.0, 1e-30),
        (1.0, 1.0, 0.25),
        (0.0, 0.0, 0.0),
        (3.0, 0.0, 3.0),
    ):
        state, means = trained(learning_rate=0.0, kl_beta=beta, kl_adapt=adapt)
        assert means["kl"] == 0
        np.testing.assert_allclose(state.train.extra["kl"].beta, then, rtol=1e-6)


def test_evaluations_clip_actions_as_training_does():
    """Pendulum clips by itself, so one that charges for what is beyond the bounds tells."""
    env = pendulum.make()

    def step(key, state, action, params):
        observation, state, reward, *rest = env.step(key, state, action, params)
        return observation, state, -jnp.abs(action[0]), *rest

    algorithm = ppo.make(env._replace(step=step), change(SMALL, eval_episodes=32))
    scores = []
    for clip in (0.0, 1.0):
        hp = dataclasses.replace(HYPER, clip_action=clip, log_std=3.0)
        state = jax.jit(algorithm.init)(jax.random.key(0), hp)
        score = jax.jit(algorithm.evaluate)(state, jax.random.key(1), hp)
        scores.append(float(metrics.mean(score)["return"]))
    # 200 steps at a mean of |N(0, 20)| = 16, and of at most 2.
    assert scores[0] < -200 * 12 and -200 * 2 <= scores[1] < -200 * 1.5
