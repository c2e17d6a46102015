"""Strategies against NumPy loops, theorems on their regret, and the lower bound."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jrl.algos import bandits as algo
from jrl.envs import bandits

STRATEGIES = (
    algo.epsilon_greedy,
    algo.ucb1,
    algo.thompson_beta,
    algo.thompson_gaussian,
    algo.gradient,
    algo.exp3,
)


def play(env, strategy, horizon, seeds, hp=None, params=None, seed=0):
    hp = strategy.default_hyper if hp is None else hp
    params = env.default_params if params is None else params
    run = functools.partial(algo.play, env, strategy, params=params, hp=hp, horizon=horizon)
    return jax.jit(jax.vmap(lambda key: run(key)))(jax.random.split(jax.random.key(seed), seeds))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.name)
def test_play_runs_every_strategy(strategy):
    env = bandits.make_bernoulli((0.2, 0.5, 0.8))
    result = play(env, strategy, 400, 30)
    assert result.rewards.shape == result.actions.shape == result.regrets.shape == (30, 400)
    assert result.actions.dtype == jnp.int32
    means = np.array([0.2, 0.5, 0.8])
    np.testing.assert_allclose(result.regrets, 0.8 - means[result.actions], atol=1e-6)
    # Better than pulling at random, whose mean regret is 0.3.
    assert result.regrets[:, 200:].mean() < 0.25
    state = strategy.init(3)
    for action in range(3):
        after = strategy.update(state, jnp.int32(action), jnp.float32(1), strategy.default_hyper)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
        dtypes = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (after, state)]
        assert dtypes[0] == dtypes[1]
        state = after
    with pytest.raises(ValueError, match="^num_arms: "):
        strategy.init(0)


def test_horizon_is_checked():
    env = bandits.make_bernoulli()
    with pytest.raises(ValueError, match="^horizon: "):
        algo.play(env, algo.ucb1, jax.random.key(0), env.default_params, algo.UCB1Hyper(), 0)


def test_ucb1_equals_a_numpy_loop():
    table = np.random.default_rng(0).random((300, 4)).astype(np.float32)
    env = bandits.make_adversarial(table)
    result = play(env, algo.ucb1, 300, 1)
    pulls, totals, actions = np.zeros(4), np.zeros(4), []
    for time in range(300):
        if time < 4:
            action = time
        else:
            action = int(np.argmax(totals / pulls + np.sqrt(2 * np.log(time) / pulls)))
        actions.append(action)
        pulls[action] += 1
        totals[action] += table[time, action]
    assert result.actions[0].tolist() == actions


@pytest.mark.parametrize("baseline", [0.0, 1.0])
def test_gradient_update_equals_a_numpy_loop(baseline):
    rng = np.random.default_rng(1)
    actions, rewards = rng.integers(0, 3, 50), rng.normal(size=50).astype(np.float32)
    hp = algo.GradientHyper(step_size=0.3, baseline=baseline)
    state, scores = algo.gradient.init(3), np.zeros(3)
    update = jax.jit(algo.gradient.update)
    for time, (action, reward) in enumerate(zip(actions, rewards, strict=True)):
        state = update(state, jnp.int32(action), jnp.float32(reward), hp)
        probs = np.exp(scores) / np.exp(scores).sum()
        mean = rewards[:time].mean() if time else reward
        scores += 0.3 * (reward - baseline * mean) * (np.eye(3)[action] - probs)
    np.testing.assert_allclose(state.scores, scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.mean, rewards.mean(), rtol=1e-4, atol=1e-6)


def test_exp3_update_equals_a_numpy_loop():
    rng = np.random.default_rng(2)
    actions, rewards = rng.integers(0, 3, 50), rng.random(50).astype(np.float32)
    state, weights = algo.exp3.init(3), np.ones(3)
    for action, reward in zip(actions, rewards, strict=True):
        hp = algo.EXP3Hyper(mixing=0.2)
        probs = 0.8 * weights / weights.sum() + 0.2 / 3
        np.testing.assert_allclose(state.probs, probs, rtol=1e-4)
        state = algo.exp3.update(state, jnp.int32(action), jnp.float32(reward), hp)
        weights[action] *= np.exp(0.2 / 3 * reward / probs[action])


def test_drawn_arms_follow_the_distribution():
    state = algo.exp3.init(3).replace(probs=jnp.array([0.7, 0.05, 0.25]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    for strategy in (algo.gradient, algo.exp3):
        hp = strategy.default_hyper
        draws = jax.vmap(lambda key, s=strategy, hp=hp: s.select(key, state, hp))(keys)
        counts = np.bincount(draws, minlength=3)
        assert scipy.stats.chisquare(counts, 20_000 * np.asarray(state.probs)).pvalue > 1e-3


def test_thompson_beta_pulls_with_the_probability_of_being_best():
    state = algo.Arms(jnp.array([10.0, 4.0]), jnp.array([0.6, 0.5]))
    one, two = scipy.stats.beta(7, 5), scipy.stats.beta(3, 3)
    best, _ = scipy.integrate.quad(lambda x: one.pdf(x) * two.cdf(x), 0, 1)
    select = functools.partial(algo.thompson_beta.select, state=state, hp=algo.ThompsonBetaHyper())
    keys = jax.random.split(jax.random.key(0), 20_000)
    frequency = (jax.jit(jax.vmap(lambda key: select(key)))(keys) == 0).mean()
    assert abs(frequency - best) < 4 * math.sqrt(best * (1 - best) / 20_000)


def test_thompson_gaussian_pulls_with_the_probability_of_being_best():
    state = algo.Arms(jnp.array([10.0, 4.0]), jnp.array([0.6, 0.9]))
    hp = algo.ThompsonGaussianHyper(noise=2.0, mean=1.0, scale=0.5)
    posteriors = []
    for pulls, mean in ((10, 0.6), (4, 0.9)):
        precision = 1 / 0.25 + pulls / 4
        posteriors.append(((1 / 0.25 + pulls / 4 * mean) / precision, 1 / precision))
    gap = posteriors[0][0] - posteriors[1][0]
    best = scipy.stats.norm.cdf(gap / math.sqrt(posteriors[0][1] + posteriors[1][1]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(jax.vmap(lambda key: algo.thompson_gaussian.select(key, state, hp)))(keys)
    assert abs((draws == 0).mean() - best) < 0.015


def test_epsilon_greedy_regret_grows_by_epsilon_times_the_mean_gap():
    means = (0.1, 0.3, 0.9)
    env = bandits.make_bernoulli(means)
    epsilons = jnp.array([0.05, 0.1, 0.3])
    axes = algo.EpsilonGreedyHyper(0, None)

    def late_slope(key, hp):
        result = algo.play(env, algo.epsilon_greedy, key, env.default_params, hp, 3000)
        return result.regrets[1000:].mean()

    keys = jax.random.split(jax.random.key(0), 100)
    over_seeds = jax.vmap(late_slope, in_axes=(0, None))
    slopes = jax.jit(jax.vmap(over_seeds, in_axes=(None, axes)))(
        keys, algo.EpsilonGreedyHyper(epsilon=epsilons)
    )
    expected = np.asarray(epsilons) * (0.9 - np.mean(means))
    np.testing.assert_allclose(slopes.mean(1), expected, rtol=0.05)


@pytest.mark.parametrize("means", [(0.9, 0.8), (0.55, 0.45, 0.4), (0.1, 0.05, 0.02, 0.01)])
def test_ucb1_regret_is_below_the_bound_of_auer(means):
    env, horizon = bandits.make_bernoulli(means), 3000
    regret = np.asarray(play(env, algo.ucb1, horizon, 100).regrets.cumsum(1).mean(0))
    gaps = np.max(means) - np.array(means)
    gaps = gaps[gaps > 0]
    time = np.arange(1, horizon + 1)
    bound = (8 / gaps).sum() * np.log(time) + (1 + math.pi**2 / 3) * gaps.sum()
    assert (regret <= bound).all()
    # Not for want of playing: the bound of any strategy is below it.
    assert regret[-1] > 0.25 * float(algo.lai_robbins_slope(jnp.array(means))) * math.log(horizon)


def test_lai_robbins_slope_equals_numpy():
    means = np.array([0.7, 0.5, 0.7, 0.1])
    terms = [
        (0.7 - p) / (p * np.log(p / 0.7) + (1 - p) * np.log((1 - p) / 0.3)) for p in (0.5, 0.1)
    ]
    np.testing.assert_allclose(
        algo.lai_robbins_slope(jnp.asarray(means, jnp.float32)), sum(terms), rtol=1e-5
    )
    certain = algo.lai_robbins_slope(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(certain, 0.5 / np.log(2), rtol=1e-5)


@pytest.mark.slow
def test_thompson_regret_grows_at_the_rate_of_lai_and_robbins():
    means = (0.8, 0.5)
    env, seeds, last = bandits.make_bernoulli(means), 300, 3000
    slope = float(algo.lai_robbins_slope(jnp.array(means)))
    total = play(env, algo.thompson_beta, last, seeds).regrets.cumsum(1)
    growth = (total[:, -1] - total[:, 199]) / math.log(last / 200)
    error = growth.std() / math.sqrt(seeds)
    assert abs(growth.mean() - slope) < 0.25 * slope + 2 * error
    # UCB1 uses Hoeffding's inequality where the KL divergence is due, and pays for it.
    other = play(env, algo.ucb1, last, 100).regrets.cumsum(1)
    assert (other[:, -1] - other[:, 199]).mean() / math.log(last / 200) > 1.5 * slope
    assert total[:, -1].mean() < other[:, -1].mean()


def test_thompson_finds_the_best_arm():
    env = bandits.make_bernoulli((0.2, 0.4, 0.8))
    result = play(env, algo.thompson_beta, 600, 60)
    assert (result.actions[:, -100:] == 2).mean() > 0.97
    env = bandits.make_gaussian((0.0, 0.5, 2.0))
    result = play(env, algo.thompson_gaussian, 1000, 100)
    assert (result.actions[:, -100:] == 2).mean() > 0.97


def test_gradient_bandit_needs_its_baseline():
    """Sutton & Barto 2018, figure 2.5: ten arms, true values near +4, step size 0.1."""
    env, seeds = bandits.make_gaussian(), 150
    keys = jax.random.split(jax.random.key(1), seeds)

    def best_share(key, hp):
        draw, key = jax.random.split(key)
        params = bandits.sample_gaussian(draw, 10)
        params = params.replace(means=params.means + 4.0)
        result = algo.play(env, algo.gradient, key, params, hp, 1000)
        return (result.regrets[-100:] == 0).mean()

    hp = algo.GradientHyper(step_size=0.1, baseline=jnp.array([0.0, 1.0]))
    over_seeds = jax.vmap(best_share, in_axes=(0, None))
    axes = algo.GradientHyper(None, 0)
    shares = jax.jit(jax.vmap(over_seeds, in_axes=(None, axes)))(keys, hp).mean(1)
    assert shares[1] > 0.7
    assert shares[0] < 0.6


def exp3_bound(table, mixing):
    best, arms = table.sum(0).max(), table.shape[1]
    return (math.e - 1) * mixing * best + arms * math.log(arms) / mixing


def tuned(arms, horizon):
    return min(1.0, math.sqrt(arms * math.log(arms) / ((math.e - 1) * horizon)))


@pytest.mark.parametrize("seed", range(2))
def test_exp3_regret_is_below_its_bound(seed):
    horizon, arms = 3000, 5
    params = bandits.sample_adversarial(jax.random.key(seed), horizon, arms)
    hp = algo.EXP3Hyper(mixing=tuned(arms, horizon))
    env = bandits.make_adversarial()
    regret = float(play(env, algo.exp3, horizon, 100, hp, params).regrets.sum(1).mean())
    bound = exp3_bound(np.asarray(params.rewards), hp.mixing)
    assert regret < bound
    assert bound < 2.63 * math.sqrt(horizon * arms * math.log(arms)) + 1


def test_exp3_survives_the_adversary_that_ruins_ucb1():
    """UCB1 is deterministic, so a table can pay 0 wherever it will pull, and 1 elsewhere."""
    horizon, arms = 1500, 3
    hp = algo.UCB1Hyper()

    def foresee(state, _):
        action = algo.ucb1.select(jax.random.key(0), state, hp)
        row = 1.0 - jax.nn.one_hot(action, arms)
        return algo.ucb1.update(state, action, jnp.float32(0), hp), row

    _, table = jax.lax.scan(foresee, algo.ucb1.init(arms), None, length=horizon)
    env = bandits.make_adversarial(table)
    ruined = play(env, algo.ucb1, horizon, 1)
    assert ruined.rewards.sum() == 0
    np.testing.assert_allclose(ruined.regrets.sum(), table.sum(0).max(), rtol=1e-5)
    hp3 = algo.EXP3Hyper(mixing=tuned(arms, horizon))
    regret = play(env, algo.exp3, horizon, 100, hp3).regrets.sum(1).mean()
    assert regret < exp3_bound(np.asarray(table), hp3.mixing)


def test_a_constant_step_size_follows_drifting_means():
    """Sutton & Barto 2018, exercise 2.5: averaging all rewards alike lags behind."""
    env = bandits.make_drifting((0.0,) * 10, drift=0.05)
    averaged = play(env, algo.epsilon_greedy, 2000, 40)
    hp = algo.EpsilonGreedyHyper(step_size=0.1)
    forgetful = play(env, algo.epsilon_greedy, 2000, 40, hp)
    late = slice(1000, None)
    assert forgetful.regrets[:, late].mean() < 0.7 * averaged.regrets[:, late].mean()


def test_strategies_vmap_over_bandits():
    env = bandits.make_bernoulli()
    keys = jax.random.split(jax.random.key(0), 40)

    def run(key):
        draw, key = jax.random.split(key)
        params = bandits.sample_bernoulli(draw, 4)
        result = algo.play(env, algo.ucb1, key, params, algo.UCB1Hyper(), 500)
        return params.means, result

    means, result = jax.jit(jax.vmap(run))(keys)
    picked = jnp.take_along_axis(means, result.actions, axis=1)
    np.testing.assert_allclose(result.regrets, means.max(1)[:, None] - picked, atol=1e-6)
