"""Token and sequence policy losses against verl, TRL and NumPy; a defect of EasyDeL."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import check_float64_grads, close, golden, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import aggregation, token_policy

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
surrogate = jax.jit(token_policy.clipped_token_surrogate, static_argnames="level")
cispo = jax.jit(token_policy.cispo_loss)
LOSSES = {
    "token": lambda *a, **k: surrogate(*a, 0.1, 0.3, 1.9, **k),
    "sequence": lambda *a, **k: surrogate(*a, 0.1, 0.3, 1.9, level="sequence", **k),
    "cispo": lambda *a, **_: cispo(*a, 0.1, 0.3),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def draw(seed, rows=3, tokens=7):
    rng = np.random.default_rng(seed)
    log_probs = -rng.exponential(size=(rows, tokens)).astype(np.float32)
    old = log_probs + rng.normal(0, 0.5, (rows, tokens)).astype(np.float32)
    advantages = rng.normal(size=(rows, tokens)).astype(np.float32)
    mask = rng.uniform(size=(rows, tokens)) < 0.7
    return [jnp.asarray(x) for x in (log_probs, old, advantages, mask)]


def columns(library, case):
    inputs, outputs = golden(f"{library}_tokens", case)
    names = ("log_probs", "old_log_probs", "advantages", "mask")
    return [jnp.asarray(inputs[name]) for name in names], inputs, outputs


def check(loss, aggregate, args, outputs, **choice):
    weights = aggregation.token_weights(args[-1], aggregate, **choice)

    def mean(log_probs):
        return jnp.sum(weights.token * loss(log_probs, *args[1:])) / jnp.sum(weights.row)

    value, grad = jax.jit(jax.value_and_grad(mean))(args[0])
    close(value, outputs["loss"])
    close(grad, outputs["grad"])


# Against verl and TRL


@pytest.mark.parametrize(
    ("case", "aggregate"),
    [
        ("ppo", "token-mean"),
        ("ppo_dual", "sequence-mean"),
        ("gspo", "sequence-mean"),
        ("gspo_token_mean", "token-mean"),
    ],
)
def test_clipped_losses_equal_verl_with_their_gradients(case, aggregate):
    # verl keeps its dual clip from GSPO.
    args, inputs, outputs = columns("verl", case)
    gspo = case.startswith("gspo")
    clip = [inputs["eps_low"], inputs["eps_high"], math.inf if gspo else inputs["dual_clip"]]
    level = "sequence" if gspo else "token"
    check(lambda *a: surrogate(*a, *clip, level=level), aggregate, args, outputs)


@pytest.mark.parametrize(
    ("case", "aggregate", "choice"),
    [
        ("dapo", "token-mean", {}),
        ("dapo_clip_higher", "token-mean", {"eps_high": 0.28}),
        ("dapo_two_sided", "token-mean", {"dual_clip": 1.4}),
        ("gspo", "sequence-mean", {"level": "sequence", "eps_low": 0.1, "eps_high": 0.15}),
        ("gspo_dapo", "token-mean", {"level": "sequence", "eps_low": 0.1, "eps_high": 0.15}),
    ],
)
def test_clipped_losses_equal_trl_with_their_gradients(case, aggregate, choice):
    # TRL differentiates the mean log-ratio of a sequence: with one advantage it is the same.
    args, _, outputs = columns("trl", case)
    empty = {"count_empty": True} if case == "gspo" else {}
    check(lambda *a: surrogate(*a, **choice), aggregate, args, outputs, **empty)


def test_cispo_equals_verl_and_trl_with_their_gradients():
    args, inputs, outputs = columns("verl", "cispo")
    clip = (inputs["eps_low"], inputs["eps_high"])
    check(lambda *a: cispo(*a, *clip), "token-mean", args, outputs)
    # The same number is a bound on the ratio there, and on its distance from one here.
    args, _, outputs = columns("trl", "cispo")
    check(lambda *a: cispo(*a, eps_high=1.3 - 1), "token-mean", args, outputs)


# By hand


def test_bad_samples_are_clipped_below_and_not_above():
    # EasyDeL takes the greater of the two objectives: 1.2 without a gradient, and 0.5 with one.
    old, mask = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
    ratios, advantages = jnp.array([[2.0, 0.5]]), jnp.array([-1.0])

    def loss(log_probs):
        return surrogate(log_probs, old, advantages, mask, 0.2)

    close(loss(jnp.log(ratios)), np.array([[2.0, 0.8]]))
    grad = jax.grad(lambda x: loss(x).sum())(jnp.log(ratios))
    close(grad, np.array([[2.0, 0.0]]))


def test_cispo_keeps_the_gradient_of_what_it_clips():
    # EasyDeL differentiates the ratio too.
    old, mask = jnp.zeros((1, 3)), jnp.ones((1, 3), bool)
    log_probs = jnp.log(jnp.array([[4.0, 0.25, 1.0]]))
    grad = jax.grad(lambda x: cispo(x, old, 2 * jnp.ones(1), mask, 0.5, 1.0).sum())(log_probs)
    close(grad, np.array([[-4.0, -1.0, -2.0]]))
    unbounded = cispo(log_probs, old, 2 * jnp.ones(1), mask, eps_high=math.inf)
    close(unbounded, -2 * np.exp(log_probs) * log_probs)


def test_a_sequence_is_clipped_as_a_whole():
    # Ratios 2 and 1/2 are a sequence of ratio 1; 4 and 1 one of 2.
    log_probs = jnp.log(jnp.array([[2.0, 0.5], [4.0, 1.0]]))
    old, mask = jnp.zeros((2, 2)), jnp.ones((2, 2), bool)

    def loss(log_probs):
        return surrogate(log_probs, old, jnp.ones(2), mask, 0.25, level="sequence")

    close(loss(log_probs), np.array([[-1.0, -1.0], [-1.25, -1.25]]))
    grad = jax.grad(lambda x: loss(x).sum())(log_probs)
    close(grad, np.array([[-1.0, -1.0], [0.0, 0.0]]))


# Against NumPy


def np_loss(name, log_prob, ratio, advantage):
    if name == "cispo":
        return -np.clip(ratio, 0.9, 1.3) * advantage * log_prob
    objective = min(ratio * advantage, np.clip(ratio, 0.9, 1.3) * advantage)
    return -(max(objective, 1.9 * advantage) if advantage < 0 else objective)


@every_loss
@few
@given(seed=seeds)
def test_losses_equal_a_loop(name, seed):
    log_probs, old, advantages, mask = map(np.asarray, draw(seed))
    expected = np.zeros((3, 7), np.float32)
    for i in range(3):
        kept = np.flatnonzero(mask[i])
        log_ratio = log_probs[i] - old[i]
        for t in kept:
            log = np.mean(log_ratio[kept]) if name == "sequence" else log_ratio[t]
            expected[i, t] = np_loss(name, log_probs[i, t], np.exp(log), advantages[i, t])
    close(LOSSES[name](*map(jnp.asarray, (log_probs, old, advantages, mask))), expected)


@every_loss
def test_through_jit_and_vmap(name):
    loss = inspect.unwrap(LOSSES[name])
    args = draw(0)
    through_jit_and_vmap(loss, *args)
    one_each = jnp.array([1.0, -2.0, 0.5])
    out = through_jit_and_vmap(loss, *args[:2], one_each, args[3])
    close(out, loss(*args[:2], jnp.tile(one_each[:, None], 7), args[3]))


@every_loss
@few
@given(seed=seeds)
def test_nothing_behind_the_mask_matters(name, seed):
    args = draw(seed)
    mask = args[3]
    bad = (jnp.nan, jnp.inf, jnp.nan)
    dirty = [jnp.where(mask, x, b) for x, b in zip(args[:3], bad, strict=True)]

    def total(log_probs, *rest):
        return LOSSES[name](log_probs, *rest, mask).sum()

    clean_value, clean_grad = jax.value_and_grad(total)(*args[:3])
    value, grad = jax.value_and_grad(total)(*dirty)
    close(value, clean_value)
    close(grad, clean_grad)
    assert not np.any(np.asarray(LOSSES[name](*dirty, mask))[~np.asarray(mask)])


# Gradients


def test_float64_gradients():
    log_probs, old, advantages, mask = draw(3)
    check_float64_grads(
        lambda x: LOSSES["token"](x, old.astype(x.dtype), advantages.astype(x.dtype), mask),
        log_probs,
    )


def test_cispo_has_the_gradient_of_weighted_log_probs():
    log_probs, old, advantages, mask = draw(3)
    weight = np.exp(np.clip(log_probs - old, np.log(0.9), np.log(1.3)))
    grad = jax.grad(lambda x: LOSSES["cispo"](x, old, advantages, mask).sum())(log_probs)
    close(grad, np.where(mask, -weight * advantages, 0))


@few
@given(seed=seeds)
def test_sequence_gradients_are_those_of_the_mean_for_one_advantage(seed):
    log_probs, old, advantages, mask = draw(seed)
    advantages = advantages[:, 0]
    weights = aggregation.token_weights(mask, "sequence-mean")

    def ours(x):
        losses = surrogate(x, old, advantages, mask, 0.1, 0.2, level="sequence")
        return jnp.sum(weights.token * losses)

    def plain(x):
        count = jnp.maximum(mask.sum(-1), 1)
        ratio = jnp.exp(jnp.where(mask, x - old, 0).sum(-1) / count)
        clipped = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.9, 1.2) * advantages)
        return -jnp.sum(jnp.where(mask.any(-1), clipped, 0))

    value, grad = jax.value_and_grad(ours)(log_probs)
    expected, expected_grad = jax.value_and_grad(plain)(log_probs)
    close(value, expected)
    close(grad, expected_grad)


@every_loss
def test_old_log_probs_and_advantages_are_constants(name):
    log_probs, *rest, mask = draw(5)
    grads = jax.grad(lambda rest: LOSSES[name](log_probs, *rest, mask).sum())(rest)
    assert not any(np.any(grad) for grad in grads)


# Packed rows


@few
@given(seed=seeds)
def test_packed_sequences_have_their_own_ratios(seed):
    args = draw(seed, rows=4, tokens=5)
    packed = [x.reshape(2, 10) for x in args]
    ids = jnp.tile(jnp.repeat(jnp.array([1, 2]), 5), (2, 1))
    alone = LOSSES["sequence"](*args)
    close(LOSSES["sequence"](*packed, segment_ids=ids), np.reshape(alone, (2, 10)))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_ratios_saturate(level):
    old, mask = jnp.full((1, 2), -1e4), jnp.ones((1, 2), bool)

    def total(log_probs):
        return surrogate(log_probs, old, -jnp.ones(1), mask, level=level).sum()

    value, grad = jax.value_and_grad(total)(jnp.zeros((1, 2)))
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))


# What raises


def bad_calls():
    x, m, row, ids = jnp.ones((2, 3)), jnp.ones((2, 3), bool), jnp.ones(2), jnp.ones((2, 3), int)
    for f in (token_policy.clipped_token_surrogate, token_policy.cispo_loss):
        yield f, (x, x[:, 1:], row, m)
        yield f, (x, x, jnp.ones(3), m)
        yield f, (x, x, x[:, 1:], m)
        yield f, (x, x, row, x)
        yield f, (ids, x, row, m)
        yield f, (x, x, row, m, row)
    yield token_policy.sequence_log_ratio, (x, x)
    yield token_policy.sequence_log_ratio, (x, m, x)
    yield token_policy.sequence_log_ratio, (x, m, ids[:, 1:])


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_ranks_shapes_and_dtypes_raise(unwrap):
    for f, args in bad_calls():
        with pytest.raises((AssertionError, TypeCheckError)):
            (inspect.unwrap(f) if unwrap else f)(*args)


def test_an_unknown_level_raises():
    x, f = jnp.ones((2, 3)), inspect.unwrap(token_policy.clipped_token_surrogate)
    with pytest.raises(ValueError, match="level must be one of token, sequence, got 'word'"):
        f(x, x, x, x > 0, level="word")
