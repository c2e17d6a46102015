"""Relatives of DPO against TRL, hand arithmetic and finite differences."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import check_pairs, close, golden, gradients_hold, pairs, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import direct_alignment as da
from jrl.losses import preference, tokens

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


# Pairs


def test_hinge_and_robust_equal_trl_with_their_gradients():
    columns, inputs, outputs = pairs("dpo_hinge")
    check_pairs(da.hinge_dpo_loss, columns, (inputs["beta"],), outputs)
    columns, inputs, outputs = pairs("dpo_robust")
    check_pairs(da.robust_dpo_loss, columns, (inputs["beta"], inputs["label_smoothing"]), outputs)


@pytest.mark.parametrize(
    ("case", "loss"),
    [("ipo_ragged", preference.ipo_loss), ("dpo_normalised", preference.dpo_loss)],
)
def test_length_normalised_losses_take_means(case, loss):
    # Each response by its own length; a sum of tokens over their number is `masked_mean`.
    columns, inputs, outputs = pairs(case)
    lengths = [jnp.asarray(inputs["length"][:, i], jnp.float32) for i in (0, 1, 0, 1)]

    def of_sums(*args):
        return loss(*(x / n for x, n in zip(args[:4], lengths, strict=True)), *args[4:])

    hyper = (jnp.asarray(inputs["beta"]),)
    close(jax.jit(of_sums)(*columns, *hyper), outputs["loss"])
    grads = jax.grad(lambda w, x: of_sums(w, x, *columns[2:], *hyper).sum(), (0, 1))
    close(jnp.stack(grads(*columns[:2]), -1), outputs["grad"])


@few
@given(seed=seeds)
def test_robust_is_unbiased_under_flipped_labels(seed):
    log_probs = jnp.asarray(np.random.default_rng(seed).normal(0, 2, (4, 5)), jnp.float32)
    chosen, rejected, ref_chosen, ref_rejected = log_probs
    right = da.robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3, 0.2)
    flipped = da.robust_dpo_loss(rejected, chosen, ref_rejected, ref_chosen, 0.3, 0.2)
    clean = preference.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    close(0.8 * right + 0.2 * flipped, clean, rtol=1e-4, atol=1e-5)


def test_differences_of_tokens_keep_the_sign_that_sums_lose():
    # 4096 tokens of about -10 nats, the reference a millionth away from the policy at each.
    rng = np.random.default_rng(0)
    log_probs = rng.uniform(-20, 0, (4, 4096)).astype(np.float32)
    ref = (log_probs - rng.choice([4e-6, -3e-6], (4, 4096))).astype(np.float32)
    exact = np.sum(log_probs.astype(np.float64) - ref.astype(np.float64), axis=-1)
    mask = jnp.ones((4, 4096), bool)
    of_differences = tokens.masked_sum(jnp.asarray(log_probs - ref), mask, axis=-1)
    close(of_differences, exact.astype(np.float32), rtol=1e-3)
    of_sums = tokens.masked_sum(jnp.asarray(log_probs), mask, -1) - tokens.masked_sum(
        jnp.asarray(ref), mask, -1
    )
    assert np.max(np.abs(of_sums - exact)) > 10 * np.max(np.abs(of_differences - exact))


# Means, no reference


@pytest.mark.parametrize("case", ["simpo", "simpo_smoothed"])
def test_simpo_equals_trl_with_its_gradient(case):
    inputs, outputs = golden("trl", case)
    columns = [jnp.asarray(inputs["means"][:, i]) for i in (0, 1)]
    hyper = tuple(inputs[name] for name in ("beta", "margin", "label_smoothing"))
    check_pairs(da.simpo_loss, columns, hyper, outputs)


def test_odds_ratio_equals_trl_with_its_gradient():
    inputs, outputs = golden("trl", "odds_ratio")
    columns, beta = [jnp.asarray(inputs["means"][:, i]) for i in (0, 1)], inputs["beta"]
    check_pairs(lambda w, x, beta: beta * da.odds_ratio_loss(w, x), columns, (beta,), outputs)
    both = through_jit_and_vmap(da.orpo_loss, *columns, beta)
    close(both, outputs["loss"] - inputs["means"][:, 0])


def test_odds_by_hand_and_at_both_ends():
    # Odds of 3 and 1: a preference of 3/4.
    log = lambda *p: jnp.log(jnp.array(p))  # noqa: E731
    close(da.odds_ratio_loss(log(0.75), log(0.5)), np.array([-np.log(0.75)]))
    certain, never = jnp.array([0.0, -1e-9, -1e4]), jnp.array([-1e4, 0.0, -1e4])
    value, grad = jax.value_and_grad(lambda x: da.odds_ratio_loss(x, never).sum())(certain)
    assert np.isfinite(value)
    assert np.all(np.isfinite(grad))
    # The odds of a small probability are the probability.
    close(da.odds_ratio_loss(jnp.array([-50.0]), jnp.array([-52.0])), np.log1p(np.exp([-2.0])))


# Single responses


@pytest.mark.parametrize("case", ["kto", "kto_negative_divergence"])
def test_kto_equals_trl_with_its_gradient(case):
    inputs, outputs = golden("trl", case)
    inputs = {name: jnp.asarray(x) for name, x in inputs.items()}
    baseline = jax.jit(da.kto_baseline)(inputs["mismatched"], inputs["ref_mismatched"])
    close(baseline, np.full(6, outputs["baseline"]))
    assert (baseline[0] == 0) == (case != "kto")
    rest = [inputs[name] for name in ("ref_log_probs", "desirable")]
    hyper = [inputs[name] for name in ("beta", "desirable_weight", "undesirable_weight")]
    losses = through_jit_and_vmap(da.kto_loss, inputs["log_probs"], *rest, baseline, *hyper)
    close(losses.mean(), outputs["loss"])
    grad = jax.grad(lambda x: da.kto_loss(x, *rest, baseline, *hyper).mean())
    close(grad(inputs["log_probs"]), outputs["grad"])


def test_kto_pulls_up_the_good_and_down_the_bad():
    desirable = jnp.array([True, False])
    grad = jax.grad(lambda x: da.kto_loss(x, jnp.zeros(2), desirable, 0.0).sum())(jnp.zeros(2))
    close(grad, np.array([-0.025, 0.025]))
    baseline = jax.grad(lambda z: da.kto_loss(jnp.zeros(2), jnp.zeros(2), desirable, z).sum())
    assert baseline(jnp.float32(0.3)) == 0


def test_the_baseline_of_a_masked_batch():
    log_probs, ref = jnp.array([-1.0, -5.0, jnp.nan]), jnp.array([-2.0, -4.0, 0.0])
    close(da.kto_baseline(log_probs, ref, jnp.array([True, False, False])), np.ones(3))
    close(da.kto_baseline(log_probs, ref, jnp.zeros(3, bool)), np.zeros(3))


# Gradients, and what raises


def test_float64_gradients():
    a, b, c, d = np.random.default_rng(0).normal(-3, 1, (4, 5))
    low, lower = -np.abs(a) - 0.1, -np.abs(b) - 0.1
    desirable = jnp.array([True, False, True, True, False])
    gradients_hold(da.robust_dpo_loss, a, b, c, d, 0.3, 0.1)
    gradients_hold(da.hinge_dpo_loss, a, b, c, d, 0.3)
    gradients_hold(da.simpo_loss, a, b, 0.7, 0.3, 0.1)
    gradients_hold(da.odds_ratio_loss, low, lower)
    gradients_hold(da.orpo_loss, low, lower, 0.3)
    gradients_hold(lambda x, r, w: da.kto_loss(x, r, desirable, 0.2, 0.3, w, 2 * w), a, b, 1.5)


def bad_calls():
    x, q, a, short = jnp.ones(3), jnp.ones((3, 2)), jnp.zeros(3, int), jnp.ones(2)
    yield da.robust_dpo_loss, (x, x, x, short, 0.1, 0.1)
    yield da.robust_dpo_loss, (x, x, x, x, 0.1, x)
    yield da.hinge_dpo_loss, (x, short, x, short, 0.1)
    yield da.hinge_dpo_loss, (x, x, x, x, x)
    yield da.simpo_loss, (x, short)
    yield da.simpo_loss, (x, x, x)
    yield da.odds_ratio_loss, (x, short)
    yield da.odds_ratio_loss, (a, a)
    yield da.orpo_loss, (x, x, x)
    yield da.kto_loss, (x, x, x, 0.0)
    yield da.kto_loss, (x, short, x > 0, 0.0)
    yield da.kto_loss, (x, x, x > 0, q)
    yield da.kto_loss, (x, x, x > 0, 0.0, x)
    yield da.kto_baseline, (q, q)
    yield da.kto_baseline, (x, x, short > 0)


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_ranks_shapes_and_dtypes_raise(unwrap):
    for f, args in bad_calls():
        with pytest.raises((AssertionError, TypeCheckError)):
            (inspect.unwrap(f) if unwrap else f)(*args)
