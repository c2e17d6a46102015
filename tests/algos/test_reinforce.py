"""REINFORCE against the closed form of a two-armed bandit."""

import dataclasses

import jax
import numpy as np
import pytest

from jrl import metrics, rollout, train
from jrl.algos import reinforce
from jrl.envs import cartpole, probes

EPISODES = 4096


@pytest.mark.parametrize("baseline", reinforce.BASELINES)
def test_gradient_of_a_bandit(baseline):
    """J = p_1 - p_0, so dJ/dlogit_1 = 2 p_0 p_1; the mean of the batch costs a factor (N-1)/N."""
    config = reinforce.Config(
        num_envs=EPISODES,
        num_steps=1,
        hidden=(4,),
        baseline=baseline,
        eval_episodes=1,
        eval_steps=1,
    )
    env = probes.policy()
    setup = rollout.setup(env, config)
    hp = reinforce.Hyper()
    state = jax.jit(reinforce.make(env, config).init)(jax.random.key(0), hp).train

    @jax.jit
    def estimate(key):
        policy, start = setup.policy(state.params), setup.start(key)
        _, trajectory = rollout.unroll(key, setup.batch, setup.env_params, policy, start, 1)
        batch = reinforce.prepare(setup, state, (), trajectory, hp)
        grad_fn = train.gradient(reinforce.make_objective(setup.network, config))
        grads, _ = grad_fn(state.params, (), batch, key, hp)
        return grads["policy"]["layers"][1]["bias"]

    grads = np.array([estimate(jax.random.key(i)) for i in range(8)])
    # Both arms are equally likely, so the closed form is 1/2, and a loss descends.
    expected = np.array([0.5, -0.5]) * (
        (EPISODES - 1) / EPISODES if baseline == "batch_mean" else 1
    )
    np.testing.assert_allclose(grads.mean(0), expected, atol=0.02)
    if baseline in ("batch_mean", "leave_one_out"):
        np.testing.assert_allclose(grads, np.broadcast_to(expected, grads.shape), atol=0.01)


def test_an_episode_counts_once_and_the_rest_is_masked():
    config = reinforce.Config(num_envs=8, num_steps=60, hidden=(4,), eval_episodes=2)
    algorithm = reinforce.make(cartpole.make(), config)
    hp = reinforce.Hyper()
    state = jax.jit(algorithm.init)(jax.random.key(0), hp)
    _, sums = jax.jit(algorithm.iterate)(state, hp)
    assert sums["episode_return"][1] == 8  # sixty steps hold several episodes each
    assert 8 < metrics.mean(sums)["episode_return"] < 60


def test_unknown_baselines_are_named():
    config = dataclasses.replace(reinforce.Config(), baseline="median")
    with pytest.raises(ValueError, match=r"config.baseline must be one of none.*'median'"):
        reinforce.make(cartpole.make(), config)
