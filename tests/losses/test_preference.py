"""Preference losses against TRL, and the closed form of RLHF against search and identities."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import check_pairs, close, golden, gradients_hold, pairs, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import preference

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
wrong = (AssertionError, TypeCheckError)


def normals(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape), jnp.float32)


# Bradley-Terry


def test_bradley_terry_by_hand():
    chosen, rejected = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])
    out = through_jit_and_vmap(preference.bradley_terry_log_prob, chosen, rejected)
    close(out, -np.log1p(np.exp(np.array([[-1.0, 3.0]]))))
    close(jnp.exp(out) + jnp.exp(preference.bradley_terry_log_prob(rejected, chosen)), 1 + 0 * out)


@pytest.mark.parametrize("case", ["reward_plain", "reward_margin", "reward_centered"])
def test_reward_model_loss_equals_trl_with_its_gradient(case):
    inputs, outputs = golden("trl", case)
    chosen, rejected = (jnp.asarray(inputs["rewards"][:, i]) for i in (0, 1))
    margin, centering = jnp.asarray(inputs["margin"]), inputs["centering"]
    loss = preference.bradley_terry_loss
    close(through_jit_and_vmap(loss, chosen, rejected, margin, centering), outputs["loss"])
    grads = jax.grad(lambda w, x: loss(w, x, margin, jnp.asarray(centering)).sum(), (0, 1))
    close(jnp.stack(grads(chosen, rejected), -1), outputs["grad"])


def test_one_margin_serves_all_pairs_and_extremes_stay_finite():
    chosen, rejected = jnp.array([1e4, -1e4]), jnp.array([-1e4, 1e4])
    close(preference.bradley_terry_loss(chosen, rejected), np.array([0.0, 2e4]))
    each = preference.bradley_terry_loss(chosen, rejected, jnp.full(2, 0.5))
    close(preference.bradley_terry_loss(chosen, rejected, 0.5), each)


# DPO


@pytest.mark.parametrize("case", ["dpo_sigmoid", "dpo_conservative"])
def test_dpo_equals_trl_with_its_gradient(case):
    columns, inputs, outputs = pairs(case)
    hyper = (inputs["beta"], inputs["label_smoothing"])
    check_pairs(preference.dpo_loss, columns, hyper, outputs)


def test_robust_dpo_is_dpo_at_a_negative_smoothing():
    columns, inputs, outputs = pairs("dpo_robust")
    e = inputs["label_smoothing"]
    check_pairs(preference.dpo_loss, columns, (inputs["beta"], -e / (1 - 2 * e)), outputs)


def test_ipo_of_averages_equals_trl():
    columns, inputs, outputs = pairs("ipo")
    length = inputs["length"]

    def of_sums(chosen, rejected, ref_chosen, ref_rejected, beta):
        means = (x / length for x in (chosen, rejected, ref_chosen, ref_rejected))
        return preference.ipo_loss(*means, beta)

    check_pairs(of_sums, columns, (inputs["beta"],), outputs)


def test_ipo_is_not_normalised_by_length():
    zero, two = jnp.zeros(1), jnp.full(1, 2.0)
    close(preference.ipo_loss(two, zero, zero, zero, 0.25), np.array([0.0]))
    close(preference.ipo_loss(zero, two, zero, zero, 0.25), np.array([16.0]))


@few
@given(seed=seeds)
def test_dpo_with_smoothing_of_a_half_is_symmetric(seed):
    chosen, rejected, ref_chosen, ref_rejected = normals(seed, 4, 6)
    one = preference.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3, 0.5)
    other = preference.dpo_loss(rejected, chosen, ref_rejected, ref_chosen, 0.3, 0.5)
    close(one, other)
    equal = preference.dpo_loss(chosen, chosen, ref_chosen, ref_chosen, 0.3, 0.5)
    assert np.all(np.asarray(one) >= np.asarray(equal) - 1e-6)


@few
@given(seed=seeds)
def test_dpo_is_bradley_terry_of_implicit_rewards(seed):
    chosen, rejected, ref_chosen, ref_rejected = normals(seed, 4, 6)
    rewards = [
        preference.implicit_reward(x, ref, 0.3)
        for x, ref in ((chosen, ref_chosen), (rejected, ref_rejected))
    ]
    loss = preference.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    close(loss, preference.bradley_terry_loss(*rewards))
    close(rewards[0], 0.3 * (np.asarray(chosen) - np.asarray(ref_chosen)))


def test_betas_map_as_hyper_parameters():
    columns, inputs, outputs = pairs("dpo_sigmoid")
    betas = jnp.array([0.1, 0.2, 0.4])
    out = jax.jit(jax.vmap(lambda b: preference.dpo_loss(*columns, b)))(betas)
    assert out.shape == (3, 6)
    close(out[0], outputs["loss"])


# The closed form


def problem(seed):
    rewards, policy, ref = normals(seed, 3, 2, 5)
    return rewards, jax.nn.log_softmax(policy), jax.nn.log_softmax(ref)


@few
@given(seed=seeds, beta=st.sampled_from([0.5, 1.0, 4.0]))
def test_optimal_policy_maximises_the_objective(seed, beta):
    rewards, policy, ref = problem(seed)
    best = preference.optimal_log_probs(rewards, ref, beta)
    close(jnp.exp(best).sum(-1), np.ones(2))
    # The definition, term by term.
    z = (np.exp(ref) * np.exp(np.asarray(rewards) / beta)).sum(-1, keepdims=True)
    close(jnp.exp(best), np.exp(ref) * np.exp(np.asarray(rewards) / beta) / z, rtol=1e-4)
    value = preference.rlhf_objective(rewards, best, ref, beta)
    close(value, beta * preference.log_partition(rewards, ref, beta), rtol=1e-4, atol=1e-4)
    near = jax.nn.log_softmax(best + 0.1 * policy)
    for other in (policy, ref, near):
        worse = preference.rlhf_objective(rewards, other, ref, beta)
        assert np.all(np.asarray(worse) <= np.asarray(value) + 1e-4)


@few
@given(seed=seeds, beta=st.sampled_from([0.5, 1.0, 4.0]))
def test_reward_of_the_optimal_policy_is_the_reward(seed, beta):
    rewards, _, ref = problem(seed)
    best = preference.optimal_log_probs(rewards, ref, beta)
    log_z = preference.log_partition(rewards, ref, beta)
    close(preference.reward_of_policy(best, ref, log_z, beta), rewards, rtol=1e-3, atol=1e-4)
    # In a preference the partition cancels: DPO's reward gives the same probability.
    implicit = preference.implicit_reward(best, ref, beta)
    close(
        preference.bradley_terry_log_prob(implicit[:, 0], implicit[:, 1]),
        preference.bradley_terry_log_prob(rewards[:, 0], rewards[:, 1]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_objective_is_the_mean_of_penalised_rewards():
    rewards, policy, ref = problem(0)
    per_sample = through_jit_and_vmap(preference.kl_penalized_reward, rewards, policy, ref, 0.3)
    close(per_sample, rewards - 0.3 * (policy - ref))
    exact = through_jit_and_vmap(preference.rlhf_objective, rewards, policy, ref, 0.3)
    divergence = (np.exp(policy) * (np.asarray(policy) - np.asarray(ref))).sum(-1)
    close(exact, (np.exp(policy) * rewards).sum(-1) - 0.3 * divergence)


def test_closed_form_transformations():
    rewards, policy, ref = problem(0)
    through_jit_and_vmap(preference.optimal_log_probs, rewards, ref, 0.5)
    log_z = through_jit_and_vmap(preference.log_partition, rewards, ref, 0.5)
    through_jit_and_vmap(preference.reward_of_policy, policy, ref, log_z, 0.5)
    through_jit_and_vmap(preference.implicit_reward, policy, ref, 0.5)


def test_an_impossible_response_stays_impossible():
    ref = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    best = preference.optimal_log_probs(jnp.array([0.0, 0.0, 9.0]), ref, 1.0)
    close(jnp.exp(best), np.array([0.5, 0.5, 0.0]))


# Gradients


def test_float64_gradients():
    rng = np.random.default_rng(0)
    a, b, c, d = rng.normal(size=(4, 3))
    gradients_hold(preference.bradley_terry_log_prob, a, b)
    gradients_hold(preference.bradley_terry_loss, a, b, c, 0.3)
    gradients_hold(preference.implicit_reward, a, b, 0.3)
    gradients_hold(preference.dpo_loss, a, b, c, d, 0.3, 0.1)
    gradients_hold(preference.ipo_loss, a, b, c, d, 0.3)
    gradients_hold(preference.kl_penalized_reward, a, b, c, 0.3)
    rewards, policy, ref = rng.normal(size=(3, 2, 4))
    gradients_hold(preference.rlhf_objective, rewards, policy, ref, 0.7)
    gradients_hold(preference.log_partition, rewards, ref, 0.7)
    gradients_hold(preference.optimal_log_probs, rewards, ref, 0.7)
    gradients_hold(preference.reward_of_policy, policy, ref, rng.normal(size=2), 0.7)


# What raises


def bad_calls():
    x, q, a, short = jnp.ones(3), jnp.ones((3, 2)), jnp.zeros(3, int), jnp.ones(2)
    yield preference.bradley_terry_log_prob, (x, short)
    yield preference.bradley_terry_log_prob, (a, a)
    yield preference.bradley_terry_loss, (x, q)
    yield preference.bradley_terry_loss, (x, x, q)
    yield preference.bradley_terry_loss, (x, x, 0.0, x)
    yield preference.implicit_reward, (x, x, x)
    yield preference.implicit_reward, (x, a, 0.1)
    yield preference.dpo_loss, (x, x, x, short, 0.1)
    yield preference.dpo_loss, (x, short, x, short, 0.1)
    yield preference.dpo_loss, (x, x, x, x, 0.1, x)
    yield preference.ipo_loss, (x, short, x, short, 0.1)
    yield preference.ipo_loss, (x, x, x, x, x)
    yield preference.kl_penalized_reward, (x, x, short, 0.1)
    yield preference.kl_penalized_reward, (a, x, x, 0.1)
    yield preference.rlhf_objective, (x, q, q, 0.1)
    yield preference.log_partition, (q, x, 0.1)
    yield preference.optimal_log_probs, (q, q, x)
    yield preference.reward_of_policy, (q, q, short, 0.1)


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_ranks_shapes_and_dtypes_raise(unwrap):
    for f, args in bad_calls():
        with pytest.raises(wrong):
            (inspect.unwrap(f) if unwrap else f)(*args)
