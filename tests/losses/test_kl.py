"""KL estimators against verl, exact divergences against enumeration, SciPy and quadrature."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from checks import close, golden, gradients_hold, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import kl

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
wrong = (AssertionError, TypeCheckError)
estimators = {"k1": kl.kl_k1, "k2": kl.kl_k2, "k3": kl.kl_k3, "k3+": kl.kl_k3_plus}


@functools.cache
def jit_grad(f, argnums=0):
    return jax.jit(jax.grad(f, argnums))


# Estimators


@pytest.mark.parametrize("name", estimators)
def test_estimators_equal_verl_with_their_gradients(name):
    f = estimators[name]
    inputs, outputs = golden("verl", f"kl_{name}")
    log_probs, ref = jnp.asarray(inputs["log_probs"]), jnp.asarray(inputs["ref_log_probs"])
    close(through_jit_and_vmap(f, log_probs, ref), outputs["value"])
    grads = jax.grad(lambda *a: f(*a).sum(), (0, 1))(log_probs, ref)
    close(grads, (outputs["grad"], outputs["ref_grad"]), rtol=1e-4)


@few
@given(seed=seeds, scale=st.sampled_from([1e-6, 1e-3, 1.0, 10.0]))
def test_estimators_vanish_at_equality_and_k2_k3_are_never_negative(seed, scale):
    rng = np.random.default_rng(seed)
    log_probs = jnp.asarray(rng.uniform(-20, 0, 32), jnp.float32)
    ref = log_probs + jnp.asarray(scale * rng.normal(size=32), jnp.float32)
    for f in estimators.values():
        assert not np.any(f(log_probs, log_probs))
    for f in (kl.kl_k2, kl.kl_k3, kl.kl_k3_plus):
        assert np.all(np.asarray(f(log_probs, ref)) >= 0)


def test_k3_keeps_its_digits_near_zero():
    # exp(x) - 1 - x in float32 is wrong by a tenth here, and exactly zero at 1e-4.
    ratio = np.array([1e-3, 1e-4], np.float32)
    close(kl.kl_k3(jnp.zeros(2), jnp.asarray(ratio)), ratio**2 / 2, rtol=3e-3, atol=0)


def test_k3_is_not_clamped():
    close(kl.kl_k3(jnp.array(-9.0), jnp.array(0.0)), np.exp(np.float32(9)) - 10)


def expectation(f, logits, ref_logits):
    # Enumeration: samples of p and their weights are fixed, as sampling would fix them.
    weights = jax.lax.stop_gradient(jax.nn.softmax(logits))
    return jnp.sum(weights * f(jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)))


expectations = {f: jax.jit(functools.partial(expectation, f)) for f in estimators.values()}
expected_grads = {f: jax.jit(jax.grad(functools.partial(expectation, f))) for f in expectations}


@few
@given(seed=seeds)
def test_expectations_of_k1_and_k3_are_the_divergence(seed):
    logits, ref = jnp.asarray(np.random.default_rng(seed).normal(0, 2, (2, 5)), jnp.float32)
    exact = kl.categorical_kl(logits, ref)
    for f in (kl.kl_k1, kl.kl_k3, kl.kl_k3_plus):
        close(expectations[f](logits, ref), exact, rtol=1e-3, atol=1e-4)


@few
@given(seed=seeds)
def test_expected_gradients_are_what_the_module_says(seed):
    logits, ref = jnp.asarray(np.random.default_rng(seed).normal(0, 1, (2, 5)), jnp.float32)

    def gradient(f):
        return expected_grads[f](logits, ref)

    reverse = jit_grad(kl.categorical_kl)(logits, ref)
    forward = jit_grad(kl.categorical_kl, 1)(ref, logits)
    near = {"rtol": 1e-3, "atol": 1e-5}
    # Tunix puts k1 into GRPO's loss: it trains nothing.
    close(gradient(kl.kl_k1), np.zeros(5), **near)
    close(gradient(kl.kl_k2), reverse, **near)
    close(gradient(kl.kl_k3), forward, **near)
    close(gradient(kl.kl_k3_plus), reverse, **near)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_estimators_have_float64_gradients(name):
    gradients_hold(estimators[name], *np.random.default_rng(0).uniform(-3, 0, (2, 2, 3)))


def test_k3_plus_has_the_float64_gradient_of_k2():
    # Its own finite differences are those of k3. Lifted by constants onto the value of k2, it
    # must agree with finite differences of k2.
    def lifted(log_probs, ref):
        constant = kl.kl_k2(log_probs, ref) - kl.kl_k3(log_probs, ref)
        return kl.kl_k3_plus(log_probs, ref) + jax.lax.stop_gradient(constant)

    gradients_hold(lifted, *np.random.default_rng(0).uniform(-3, 0, (2, 2, 3)))


# Categoricals


@few
@given(seed=seeds)
def test_categorical_kl_and_entropy_equal_scipy(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(4), (2, 3))
    # Any constant in the logits drops out.
    logits_p, logits_q = (jnp.asarray(np.log(x + 1e-6) + 7, jnp.float32) for x in (p, q))
    p, q = ((x + 1e-6) / (x + 1e-6).sum(-1, keepdims=True) for x in (p, q))
    close(kl.categorical_kl(logits_p, logits_q), scipy.stats.entropy(p, q, axis=-1), 1e-4, 1e-5)
    close(kl.categorical_entropy(logits_p), scipy.stats.entropy(p, axis=-1), 1e-4, 1e-5)


def test_categorical_transformations():
    rng = np.random.default_rng(0)
    p, q = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    assert through_jit_and_vmap(kl.categorical_kl, p, q).shape == (3,)
    assert through_jit_and_vmap(kl.categorical_entropy, p).shape == (3,)
    gradients_hold(kl.categorical_kl, p, q)
    gradients_hold(kl.categorical_entropy, p)


def test_forbidden_choices_add_nothing_and_keep_gradients_finite():
    p = jnp.array([0.0, -jnp.inf, 1.0])
    q = jnp.array([1.0, -jnp.inf, 0.0])
    close(kl.categorical_kl(p, q), kl.categorical_kl(p[::2], q[::2]))
    close(kl.categorical_entropy(p), kl.categorical_entropy(p[::2]))
    grads = jit_grad(kl.categorical_kl, (0, 1))(p, q)
    assert all(np.all(np.isfinite(g)) for g in grads)
    close(jit_grad(kl.categorical_entropy)(p)[::2], jit_grad(kl.categorical_entropy)(p[::2]))
    # Forbidden in p only: the mass of the others; in q only: infinitely different.
    close(kl.categorical_kl(p, jnp.zeros(3)), np.log(3) - kl.categorical_entropy(p))
    assert kl.categorical_kl(jnp.zeros(3), q) == jnp.inf


def test_entropy_of_extremes():
    close(kl.categorical_entropy(jnp.zeros((2, 8))), np.full(2, np.log(8)))
    close(kl.categorical_entropy(jnp.array([0.0, -1e30])), np.float32(0))


# Gaussians


@few
@given(seed=seeds)
def test_gaussian_kl_and_entropy_equal_quadrature(seed):
    rng = np.random.default_rng(seed)
    m_p, m_q = rng.normal(size=2)
    s_p, s_q = rng.uniform(0.5, 1.5, 2)
    x = np.linspace(m_p - 12 * s_p, m_p + 12 * s_p, 20001)
    log_p, log_q = scipy.stats.norm.logpdf(x, m_p, s_p), scipy.stats.norm.logpdf(x, m_q, s_q)
    column = [jnp.full((1,), v, jnp.float32) for v in (m_p, np.log(s_p), m_q, np.log(s_q))]
    exact = np.trapezoid(np.exp(log_p) * (log_p - log_q), x)
    close(kl.gaussian_kl(*column), np.float32(exact), 1e-4, 1e-5)
    close(kl.gaussian_entropy(column[1]), np.float32(scipy.stats.norm.entropy(m_p, s_p)), 1e-4)


def test_gaussian_dimensions_add_up():
    rng = np.random.default_rng(0)
    args = [jnp.asarray(a, jnp.float32) for a in rng.normal(size=(4, 3, 2))]
    out = through_jit_and_vmap(kl.gaussian_kl, *args)
    alone = [kl.gaussian_kl(*(a[:, d : d + 1] for a in args)) for d in range(2)]
    close(out, alone[0] + alone[1])
    entropy = through_jit_and_vmap(kl.gaussian_entropy, args[1])
    close(entropy, scipy.stats.norm.entropy(0, np.exp(args[1])).sum(-1))
    gradients_hold(kl.gaussian_kl, *args)
    gradients_hold(kl.gaussian_entropy, args[1])


@few
@given(seed=seeds, scale=st.sampled_from([1e-5, 1e-2, 1.0]))
def test_gaussian_kl_is_zero_at_equality_and_never_negative(seed, scale):
    rng = np.random.default_rng(seed)
    mean, log_std = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    step = jnp.asarray(scale * rng.normal(size=4), jnp.float32)
    assert kl.gaussian_kl(mean, log_std, mean, log_std) == 0
    assert kl.gaussian_kl(mean, log_std, mean + step, log_std - step) >= 0


# What raises


def bad_calls():
    x, q, a = jnp.ones(3), jnp.ones((3, 2)), jnp.zeros(3, int)
    for f in estimators.values():
        yield f, (x, jnp.ones(2))
        yield f, (x, q)
        yield f, (a, a)
    yield kl.categorical_kl, (q, jnp.ones((3, 3)))
    yield kl.categorical_kl, (q, x)
    yield kl.categorical_entropy, (a,)
    yield kl.gaussian_kl, (q, q, q, x)
    yield kl.gaussian_kl, (q, q.astype(int), q, q)
    yield kl.gaussian_entropy, (a,)


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_ranks_shapes_and_dtypes_raise(unwrap):
    for f, args in bad_calls():
        with pytest.raises(wrong):
            (inspect.unwrap(f) if unwrap else f)(*args)
