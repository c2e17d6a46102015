"""Token rewards and advantages against verl, TRL and NumPy loops."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close, golden, gradients_hold, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import kl, token_returns, tokens

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
rewards_of = jax.jit(token_returns.token_rewards, static_argnames="kl")
gae = jax.jit(token_returns.generalized_token_advantages)


def draw(seed, rows=3, length=7):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(rows, length)) < 0.6
    rewards, values = rng.normal(size=(2, rows, length)).astype(np.float32)
    return [jnp.asarray(x) for x in (rewards, values, mask)]


# Rewards


def test_token_rewards_equal_verl():
    inputs, outputs = golden("verl_tokens", "kl_reward")
    args = [jnp.asarray(x) for x in inputs.values()]
    close(through_jit_and_vmap(token_returns.token_rewards, *args), outputs["token_rewards"])


def test_token_rewards_sum_to_the_penalised_reward():
    log_probs, ref, mask = draw(0)
    mask = mask.at[:, 0].set(True)
    rewards = jnp.array([0.7, -0.25, 0.1])
    out = rewards_of(rewards, log_probs, ref, mask, 0.3)
    difference = np.where(mask, log_probs - ref, 0).sum(-1)
    close(out.sum(-1), np.asarray(rewards) - 0.3 * difference)
    # Without a penalty fractions survive.
    assert np.array_equal(rewards_of(rewards, log_probs, ref, mask, 0.0).sum(-1), rewards)


def test_another_estimator_and_what_is_behind_the_mask():
    log_probs, ref, mask = draw(1)
    rewards = jnp.zeros(3)
    dirty = jnp.where(mask, log_probs, jnp.nan), jnp.where(mask, ref, -jnp.inf)
    out = rewards_of(rewards, *dirty, mask, 0.5, kl=kl.kl_k3)
    log_ratio = np.asarray(ref - log_probs)
    close(out, np.where(mask, -0.5 * (np.exp(log_ratio) - 1 - log_ratio), 0))
    grad = jax.grad(lambda x: rewards_of(rewards, x, dirty[1], mask, 0.5, kl=kl.kl_k3).sum())
    assert np.all(np.isfinite(grad(dirty[0])))


# Advantages


@pytest.mark.parametrize("case", ["gae", "gae_undiscounted"])
def test_advantages_equal_verl(case):
    inputs, outputs = golden("verl_tokens", case)
    rewards, values, mask, discount, lambda_ = map(jnp.asarray, inputs.values())
    out = through_jit_and_vmap(gae, rewards, values, mask, discount, lambda_)
    close(out.returns, outputs["returns"])
    close(tokens.masked_whiten(out.advantages, mask), outputs["white"], rtol=1e-4, atol=1e-5)


def loop(rewards, values, mask, discount, lambda_, bootstrap):
    """Carries the next value and advantage from the right through what is masked."""
    advantages = np.zeros_like(rewards)
    for i in range(len(rewards)):
        following, later = bootstrap[i], 0.0
        for t in reversed(range(rewards.shape[1])):
            if mask[i, t]:
                delta = rewards[i, t] + discount * following - values[i, t]
                later = delta + discount * lambda_ * later
                advantages[i, t], following = later, values[i, t]
    return advantages


@few
@given(seed=seeds)
def test_advantages_are_carried_through_masked_tokens(seed):
    rewards, values, mask = draw(seed)
    bootstrap = jnp.asarray(np.random.default_rng(seed).normal(size=3), jnp.float32)
    dirty = jnp.where(mask, rewards, jnp.inf), jnp.where(mask, values, jnp.nan)
    out = gae(*dirty, mask, 0.9, 0.8, bootstrap)
    expected = loop(*map(np.asarray, (rewards, values, mask)), 0.9, 0.8, np.asarray(bootstrap))
    close(out.advantages, expected)
    close(out.returns, np.where(mask, expected + np.asarray(values), 0))
    grads = jax.grad(lambda r, v: gae(r, v, mask, 0.9, 0.8, bootstrap).returns.sum(), (0, 1))
    assert all(np.all(np.isfinite(grad)) for grad in grads(*dirty))


def test_a_tool_in_the_middle_changes_nothing():
    rewards, values = jnp.array([[0.1, 0.2, 0.7]]), jnp.array([[0.5, -0.3, 0.2]])
    plain = gae(rewards, values, jnp.ones((1, 3), bool), 0.9, 0.8)
    spread = lambda x: jnp.insert(x, 2, jnp.full((3, 1), 55.0), axis=1)  # noqa: E731
    mask = jnp.array([[True, True, False, False, False, True]])
    out = gae(spread(rewards), spread(values), mask, 0.9, 0.8)
    close(out.advantages[mask], plain.advantages[0])
    close(out.returns[mask], plain.returns[0])


def test_the_reward_to_go_when_nothing_is_known():
    # discount = lambda = 1 and no values: every token gets the reward of the response.
    mask = jnp.array([[True, False, True, True, False], [False] * 5])
    rewards = tokens.reward_at_last_token(jnp.array([0.7, 0.3]), mask)
    out = gae(rewards, jnp.zeros((2, 5)), mask)
    close(out.advantages, np.where(mask, [[0.7], [0.3]], 0))


def test_float64_gradients():
    rewards, values, mask = draw(4)
    bootstrap = np.array([0.3, -0.2, 0.5])
    gradients_hold(
        lambda r, v, b: token_returns.generalized_token_advantages(r, v, mask, 0.9, 0.8, b),
        np.asarray(rewards),
        np.asarray(values),
        bootstrap,
    )
    gradients_hold(
        lambda r, x, ref: token_returns.token_rewards(r, x, ref, mask, 0.3),
        bootstrap,
        np.asarray(rewards),
        np.asarray(values),
    )


# Long responses


def test_overlong_penalty_equals_trl():
    inputs, outputs = golden("trl_tokens", "overlong")
    mask = jnp.arange(12)[None] < jnp.asarray(inputs["lengths"])[:, None]
    sizes = int(inputs["max_length"]), int(inputs["buffer"])
    out = through_jit_and_vmap(lambda m: token_returns.overlong_penalty(m, *sizes), mask)
    close(out, outputs["penalty"])
    half = token_returns.overlong_penalty(mask, *sizes, scale=0.5)
    close(half, 0.5 * outputs["penalty"])


def test_length_is_counted_in_tokens():
    # Tunix takes the length of the text: three words of a dozen letters would be too long.
    text = ["incomprehensible", "verification", "notwithstanding"]
    assert len("".join(text)) > 40
    mask = jnp.arange(32) < len(text)
    assert float(token_returns.overlong_penalty(mask, max_length=32, buffer=8)) == 0
    assert float(token_returns.overlong_penalty(jnp.ones(32, bool), max_length=32, buffer=8)) == -1


def test_truncated_responses_leave_the_loss():
    mask = jnp.array([[True, True, False], [True, False, True]])
    out = jax.jit(token_returns.mask_truncated)(mask, jnp.array([False, True]))
    assert np.array_equal(out, [[True, True, False], [False, False, False]])


# What raises


def bad_calls():
    x, m, row = jnp.ones((2, 3)), jnp.ones((2, 3), bool), jnp.ones(2)
    yield token_returns.token_rewards, (row, x, x[:, 1:], m, 0.1)
    yield token_returns.token_rewards, (x, x, x, m, 0.1)
    yield token_returns.token_rewards, (row > 0, x, x, m, 0.1)
    yield token_returns.token_rewards, (row, x, x, m, row)
    yield token_returns.generalized_token_advantages, (x, x, x)
    yield token_returns.generalized_token_advantages, (x, x[:, 1:], m)
    yield token_returns.generalized_token_advantages, (x, x, m, row)
    yield token_returns.generalized_token_advantages, (x, x, m, 1.0, 1.0, jnp.ones(3))
    yield token_returns.mask_truncated, (m, jnp.ones(3, bool))
    yield token_returns.mask_truncated, (x, row > 0)
    yield token_returns.overlong_penalty, (x, 4, 2)
    yield token_returns.overlong_penalty, (m, 4, 2, row)


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_ranks_shapes_and_dtypes_raise(unwrap):
    for f, args in bad_calls():
        with pytest.raises((AssertionError, TypeCheckError)):
            (inspect.unwrap(f) if unwrap else f)(*args)


def test_a_buffer_that_does_not_fit_raises():
    for buffer in (0, 5):
        with pytest.raises(ValueError, match=r"buffer must be in 1 .. max_length = 4"):
            token_returns.overlong_penalty(jnp.ones((1, 4), bool), 4, buffer)
