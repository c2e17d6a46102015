"""Token-batch columns against verl, NumPy loops and identities; known defects of peers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close, golden, gradients_hold, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import tokens

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
wrong = (AssertionError, TypeCheckError)
kinds = ["grpo", "dr_grpo", "rloo"]
each_kind = pytest.mark.parametrize("kind", [*kinds, "batch_std"])
by_axis = jax.jit(tokens.group_advantages, static_argnames="kind")
by_id = jax.jit(tokens.group_advantages_by_id, static_argnames=("num_groups", "kind"))
whiten = jax.jit(tokens.masked_whiten, static_argnames="shift_mean")


def batch_through_jit_and_vmap(f, *args):
    """For functions that couple the examples of a batch: maps over batches instead."""
    one = jax.jit(f)(*args)
    two = jax.jit(jax.vmap(f))(*(jnp.stack([a, jnp.zeros_like(a)]) for a in args))
    close(two[0], one)
    return one


def loop(rewards, kind, eps=1e-6):
    """One group, by the definitions."""
    n = len(rewards)
    if n <= 1:
        return rewards / (1 + eps) if kind == "grpo" else rewards
    if kind == "rloo":
        return np.array([r - np.delete(rewards, i).mean() for i, r in enumerate(rewards)])
    centered = rewards - rewards.mean()
    return centered / (rewards.std(ddof=1) + eps) if kind == "grpo" else centered


# Group-relative advantages


@pytest.mark.parametrize("kind", kinds)
@pytest.mark.parametrize("groups", ["even", "ragged"])
def test_advantages_by_id_equal_verl(kind, groups):
    inputs, outputs = golden("verl", f"{kind}_{groups}")
    rewards, ids = jnp.asarray(inputs["rewards"]), jnp.asarray(inputs["group_ids"])

    def of_batch(rewards, ids):
        return by_id(rewards, ids, num_groups=4, kind=kind)

    close(batch_through_jit_and_vmap(of_batch, rewards, ids), outputs["advantages"], rtol=1e-4)


@pytest.mark.parametrize("kind", kinds)
def test_advantages_along_an_axis_equal_verl(kind):
    inputs, outputs = golden("verl", f"{kind}_even")
    rewards = jnp.asarray(inputs["rewards"]).reshape(2, 4)
    out = through_jit_and_vmap(lambda r: by_axis(r, kind=kind), rewards)
    close(out, outputs["advantages"].reshape(2, 4), rtol=1e-4)


@few
@given(seed=seeds, kind=st.sampled_from(kinds))
def test_ragged_groups_by_mask_and_by_id_equal_the_loop(seed, kind):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(4, 5)) < 0.5
    mask[0] = True
    rewards = np.where(mask, rng.normal(0, 3, (4, 5)), np.nan).astype(np.float32)
    expected = np.zeros((4, 5), np.float32)
    for g in range(4):
        expected[g, mask[g]] = loop(rewards[g, mask[g]], kind)
    out = by_axis(jnp.asarray(rewards), jnp.asarray(mask), kind=kind)
    close(out, expected, rtol=1e-4, atol=1e-5)

    order = rng.permutation(20)
    ids = np.repeat(np.arange(4), 5)[order]
    args = map(jnp.asarray, (rewards.reshape(-1)[order], ids))
    out = by_id(*args, num_groups=6, mask=jnp.asarray(mask.reshape(-1)[order]), kind=kind)
    close(out, expected.reshape(-1)[order], rtol=1e-4, atol=1e-5)


@few
@given(seed=seeds)
def test_rewards_scaled_by_the_batch_equal_the_loop(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(4, 5)) < 0.6
    mask[0], mask[1:3, 0] = True, True
    rewards = np.where(mask, rng.normal(1, 3, (4, 5)), np.nan).astype(np.float32)
    std = np.nanstd(rewards, ddof=1)
    expected = np.zeros((4, 5), np.float32)
    for g in range(4):
        expected[g, mask[g]] = loop(rewards[g, mask[g]], "dr_grpo") / (std + 1e-4)
    args = jnp.asarray(rewards), jnp.asarray(mask)
    close(by_axis(*args, kind="batch_std", eps=1e-4), expected, rtol=1e-4, atol=1e-5)
    flat = [a.reshape(-1) for a in args]
    ids = jnp.repeat(jnp.arange(4), 5)
    out = by_id(flat[0], ids, num_groups=4, mask=flat[1], kind="batch_std", eps=1e-4)
    close(out, expected.reshape(-1), rtol=1e-4, atol=1e-5)


@few
@given(seed=seeds)
def test_groups_are_informative_where_rewards_differ(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(6, 4)) < 0.5
    rewards = np.where(mask, rng.integers(0, 2, (6, 4)), np.nan).astype(np.float32)
    expected = [len(set(r[m])) > 1 for r, m in zip(rewards, mask, strict=True)]
    args = jnp.asarray(rewards), jnp.asarray(mask)
    informative = jax.jit(tokens.informative_groups)
    assert informative(*args).tolist() == expected
    # The others have no advantages to learn from, except for lonely rewards.
    advantages = np.asarray(by_axis(*args, kind="dr_grpo"))
    several = mask.sum(-1) > 1
    assert np.array_equal(np.any(advantages != 0, -1)[several], np.array(expected)[several])


@few
@given(seed=seeds)
def test_advantages_sum_to_zero_and_leave_one_out_is_rescaled(seed):
    rewards = jnp.asarray(np.random.default_rng(seed).normal(2, 3, (3, 8)), jnp.float32)
    for kind in kinds:
        close(by_axis(rewards, kind=kind).sum(-1), np.zeros(3), atol=1e-4)
    centered = rewards - rewards.mean(-1, keepdims=True)
    close(by_axis(rewards, kind="rloo"), 8 / 7 * centered, atol=1e-5)
    scaled = by_axis(rewards)
    close(scaled.std(-1, ddof=1), np.ones(3), rtol=1e-4)
    close(by_axis(10 * rewards + 3), scaled, rtol=1e-3, atol=1e-4)


@each_kind
def test_equal_rewards_give_exactly_zero(kind):
    # A rounded mean of 0.1s, divided by the eps, is an advantage out of nothing.
    rewards = jnp.full((1, 7), 0.1)
    assert not np.any(by_axis(rewards, kind=kind))
    ids = jnp.zeros(7, int)
    assert not np.any(by_id(rewards[0], ids, num_groups=1, kind=kind))


@pytest.mark.parametrize("kind", kinds)
def test_a_group_of_one_keeps_its_reward_and_an_empty_one_is_zero(kind):
    mask = jnp.array([[True, False], [False, False]])
    out = by_axis(jnp.array([[5.0, 7.0], [7.0, 7.0]]), mask, kind=kind)
    close(out, np.array([[5.0, 0.0], [0.0, 0.0]]))


def test_an_unknown_id_gives_zero_and_spoils_no_group():
    rewards, ids = jnp.array([1.0, 3.0, 9.0, 9.0]), jnp.array([0, 0, 5, -1])
    out = by_id(rewards, ids, num_groups=2, kind="dr_grpo")
    close(out, np.array([-1.0, 1.0, 0.0, 0.0]))


def test_eps_maps_as_a_hyper_parameter():
    rewards = jnp.array([[0.0, 2.0]])
    out = jax.vmap(lambda e: by_axis(rewards, eps=e))(jnp.array([1e-6, 1.0]))
    close(out[:, 0, 1], np.array([1 / np.sqrt(2), 1 / (np.sqrt(2) + 1)]))


@each_kind
def test_advantages_have_float64_gradients(kind):
    rewards = np.random.default_rng(0).normal(size=(3, 4))
    mask, ids = np.arange(12).reshape(3, 4) % 5 > 0, np.array([0, 1, 1, 0])
    gradients_hold(lambda r: by_axis(r, jnp.asarray(mask), kind=kind), rewards)
    gradients_hold(lambda r: by_id(r, jnp.asarray(ids), num_groups=3, kind=kind), rewards[0])
    equal = jax.grad(lambda r: by_axis(r, kind=kind)[0])(jnp.ones(4))
    assert np.all(np.isfinite(equal))


# Masked statistics


def test_whitening_and_mean_equal_verl():
    for case, shift_mean in (("masked_whiten", True), ("masked_whiten_keep_mean", False)):
        inputs, outputs = golden("verl", case)
        x, mask = jnp.asarray(inputs["x"]), jnp.asarray(inputs["mask"])
        out = batch_through_jit_and_vmap(
            lambda x, m, shift_mean=shift_mean: whiten(x, m, shift_mean=shift_mean), x, mask
        )
        close(out, outputs["white"], rtol=1e-4)
        mean = batch_through_jit_and_vmap(tokens.masked_mean, x, mask)
        close(mean, outputs["mean"])


@few
@given(seed=seeds)
def test_whitened_elements_have_mean_zero_and_variance_one(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(4, 6)) < 0.5
    mask[0, :2] = True
    x = np.where(mask, rng.normal(5, 3, (4, 6)), np.inf).astype(np.float32)
    white = np.asarray(whiten(jnp.asarray(x), jnp.asarray(mask)))
    kept = white[mask]
    close(kept.mean(), np.float32(0), atol=1e-4)
    close(kept.std(ddof=1), np.float32(1), rtol=1e-3)
    assert not np.any(white[~mask])
    kept_mean = np.asarray(whiten(jnp.asarray(x), jnp.asarray(mask), shift_mean=False))[mask]
    close(kept_mean.mean(), x[mask].mean(), rtol=1e-3, atol=1e-3)


def test_masked_mean_axes_and_empty_masks():
    x = jnp.array([[1.0, 3.0, jnp.nan], [jnp.nan, jnp.inf, 5.0]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    close(tokens.masked_mean(x, mask), np.float32(2))
    close(tokens.masked_mean(x, mask, axis=1), np.array([2.0, 0.0]))
    close(tokens.masked_mean(x, mask, axis=(0, 1)), np.float32(2))
    close(tokens.masked_mean(x, mask, axis=0), np.array([1.0, 3.0, 0.0]))
    assert not np.any(whiten(x, jnp.zeros((2, 3), bool)))
    alone = jnp.zeros((2, 3), bool).at[0, 1].set(True)
    assert not np.any(whiten(x, alone))


def test_masked_gradients():
    x = np.random.default_rng(0).normal(size=(2, 4))
    mask = np.array([[True, True, False, True], [False, True, True, False]])
    gradients_hold(lambda x: tokens.masked_mean(x, jnp.asarray(mask), axis=1), x)
    gradients_hold(lambda x: whiten(x, jnp.asarray(mask)), x)


@few
@given(seed=seeds)
def test_whitening_is_the_normalisation_of_areal(seed):
    # (A - mean) / (std + 1e-5) over all tokens of the batch, std with n - 1, sums in float64.
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(4, 6)) < 0.5
    mask[:2, 0] = True
    rewards = rng.normal(size=4)
    advantages = np.repeat(rewards[:, None], 6, axis=1)
    kept = advantages[mask]
    expected = np.where(mask, (advantages - kept.mean()) / (kept.std(ddof=1) + 1e-5), 0)
    out = whiten(jnp.asarray(advantages, jnp.float32), jnp.asarray(mask))
    close(out, expected.astype(np.float32), rtol=1e-3, atol=1e-3)


# Sums over sequences


@few
@given(seed=seeds)
def test_sequence_sums_equal_the_loop(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(3, 8)) < 0.6
    x = np.where(mask, rng.normal(size=(3, 8)), np.nan).astype(np.float32)
    ids = rng.integers(0, 9, (3, 8))
    expected, whole = np.zeros((2, 3, 8), np.float32)
    for i, t in np.ndindex(3, 8):
        whole[i, t] = x[i, mask[i]].sum()
        if ids[i, t] > 0:
            expected[i, t] = x[i, mask[i] & (ids[i] == ids[i, t])].sum()
    sums = jax.jit(tokens.sequence_sums)
    args = jnp.asarray(x), jnp.asarray(mask)
    close(sums(*args), whole, atol=1e-5)
    close(sums(*args, jnp.asarray(ids)), expected, atol=1e-5)
    close(jax.vmap(sums)(*args, jnp.asarray(ids)), expected, atol=1e-5)
    close(tokens.masked_sum(*args, axis=-1), whole[:, 0], atol=1e-5)
    grad = jax.grad(lambda x: sums(x, args[1], jnp.asarray(ids)).sum())(args[0])
    assert np.all(np.isfinite(grad))


# Rewards on tokens


def test_fractional_rewards_survive_on_the_last_token():
    # Tunix builds this array like the integer ids: 0.7 becomes 0.
    rewards = jnp.array([0.7, -0.25, 3.0, 9.0])
    mask = jnp.array([[1, 1, 1, 0], [1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    out = through_jit_and_vmap(tokens.reward_at_last_token, rewards, mask)
    expected = np.zeros((4, 4))
    expected[0, 2], expected[1, 3], expected[2, 0] = 0.7, -0.25, 3.0
    close(out, expected)
    assert out.dtype == rewards.dtype


def test_the_end_of_sequence_token_is_rewarded():
    eos = 2
    ids = jnp.array([[5, 7, eos, 0, 0], [eos, 0, 0, 0, 0], [5, 5, 5, 5, 5]])
    ended = jnp.cumsum(ids == eos, axis=-1)
    mask = (ended - (ids == eos)) == 0
    out = tokens.reward_at_last_token(jnp.array([1.5, 2.5, 3.5]), mask)
    assert np.argmax(out, axis=-1).tolist() == [2, 0, 4]
    close(out[jnp.arange(2), jnp.array([2, 0])], np.array([1.5, 2.5]))


@few
@given(seed=seeds)
def test_placed_rewards_sum_to_the_rewards(seed):
    rng = np.random.default_rng(seed)
    mask = rng.uniform(size=(2, 3, 6)) < 0.4
    rewards = rng.normal(size=(2, 3)).astype(np.float32)
    out = np.asarray(tokens.reward_at_last_token(jnp.asarray(rewards), jnp.asarray(mask)))
    assert np.array_equal(out.sum(-1), np.where(mask.any(-1), rewards, 0))
    assert not np.any(out[~mask])
    for row, kept in zip(out.reshape(-1, 6), mask.reshape(-1, 6), strict=True):
        if kept.any():
            assert row[np.flatnonzero(kept)[-1]] != 0


def test_placement_has_float64_gradients():
    mask = jnp.array([[True, True, False], [True, False, True]])
    gradients_hold(lambda r: tokens.reward_at_last_token(r, mask), np.array([0.3, 0.4]))


# What raises


def bad_calls():
    x, q, a, m = jnp.ones(3), jnp.ones((3, 2)), jnp.zeros(3, int), jnp.ones((3, 2), bool)
    yield tokens.group_advantages, (a,)
    yield tokens.group_advantages, (q, m[:2])
    yield tokens.group_advantages, (q, q)
    yield tokens.group_advantages, (q, m, "grpo", x)
    yield tokens.group_advantages_by_id, (q, a, 2)
    yield tokens.group_advantages_by_id, (x, x, 2)
    yield tokens.group_advantages_by_id, (x, a[:2], 2)
    yield tokens.informative_groups, (q, q)
    yield tokens.informative_groups, (q, m[:2])
    yield tokens.sequence_sums, (q, q)
    yield tokens.sequence_sums, (q, m, q)
    yield tokens.sequence_sums, (q, m, jnp.zeros((3, 1), int))
    yield tokens.masked_sum, (q, q)
    yield tokens.masked_mean, (q, q)
    yield tokens.masked_mean, (x, m)
    yield tokens.masked_whiten, (a, a > 0)
    yield tokens.masked_whiten, (x, a > 0, True, x)
    yield tokens.reward_at_last_token, (q, m)
    yield tokens.reward_at_last_token, (a, m)
    yield tokens.reward_at_last_token, (x, q)


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_ranks_shapes_and_dtypes_raise(unwrap):
    for f, args in bad_calls():
        with pytest.raises(wrong):
            (inspect.unwrap(f) if unwrap else f)(*args)


def test_an_unknown_kind_raises():
    with pytest.raises((ValueError, TypeCheckError)):
        tokens.group_advantages(jnp.ones((2, 2)), kind="ppo")
    with pytest.raises(ValueError, match="'ppo'"):
        inspect.unwrap(tokens.group_advantages)(jnp.ones((2, 2)), kind="ppo")
