"""Distributions against scipy.stats, and their samples against their own densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jrl.distributions import Categorical, Normal

RNG = np.random.default_rng(0)
LOGITS, OTHER = np.float32(3 * RNG.normal(size=(2, 4, 5)))
MEAN, LOG_STD, MEAN2, LOG_STD2 = np.float32(RNG.normal(size=(4, 4, 3)))
ACTION = np.float32(RNG.normal(size=(4, 3)))


def probabilities(logits):
    p = np.exp(np.float64(logits))
    return p / p.sum(-1, keepdims=True)


def test_categorical_equals_scipy():
    d, p, q = Categorical(jnp.asarray(LOGITS)), probabilities(LOGITS), probabilities(OTHER)
    action = jnp.array([0, 4, 2, 2])
    expected = [
        scipy.stats.rv_discrete(values=(range(5), row)).logpmf(a)
        for row, a in zip(p, action, strict=True)
    ]
    np.testing.assert_allclose(jax.jit(Categorical.log_prob)(d, action), expected, rtol=1e-5)
    np.testing.assert_allclose(d.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-5)
    kl = d.kl(Categorical(jnp.asarray(OTHER)))
    np.testing.assert_allclose(kl, scipy.stats.entropy(p, q, axis=-1), rtol=1e-4)
    np.testing.assert_array_equal(d.mode(), p.argmax(-1))
    np.testing.assert_allclose(d.kl(d), 0.0, atol=1e-6)


def test_categorical_with_an_impossible_action():
    d = Categorical(jnp.array([0.0, 0.0, -jnp.inf]))
    np.testing.assert_allclose(d.entropy(), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(d.kl(Categorical(jnp.zeros(3))), np.log(1.5), rtol=1e-5)
    np.testing.assert_allclose(d.log_prob(jnp.int32(1)), -np.log(2), rtol=1e-6)


def test_categorical_samples_by_probability():
    d = Categorical(jnp.broadcast_to(jnp.asarray(LOGITS[0]), (20_000, 5)))
    draws = np.bincount(jax.jit(Categorical.sample)(d, jax.random.key(0)), minlength=5)
    p = probabilities(LOGITS[0])
    assert scipy.stats.chisquare(draws, 20_000 * p).pvalue > 1e-3


def test_log_probabilities_differentiate_to_the_score():
    grads = jax.grad(lambda x: Categorical(x).log_prob(jnp.int32(2)))(jnp.asarray(LOGITS[0]))
    np.testing.assert_allclose(grads, np.eye(5)[2] - probabilities(LOGITS[0]), atol=1e-5)


def test_normal_equals_scipy():
    d = Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    reference = scipy.stats.norm(np.float64(MEAN), np.exp(np.float64(LOG_STD)))
    log_prob = jax.jit(Normal.log_prob)(d, jnp.asarray(ACTION))
    np.testing.assert_allclose(log_prob, reference.logpdf(ACTION).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(d.entropy(), reference.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(d.mode(), MEAN)


def test_normal_kl_equals_the_integral():
    d, other = (
        Normal(jnp.asarray(m), jnp.asarray(s)) for m, s in ((MEAN, LOG_STD), (MEAN2, LOG_STD2))
    )
    x = np.linspace(-40, 40, 400_001)
    expected = np.zeros(4)
    for i in range(4):
        for j in range(3):
            p = scipy.stats.norm(MEAN[i, j], np.exp(LOG_STD[i, j]))
            q = scipy.stats.norm(MEAN2[i, j], np.exp(LOG_STD2[i, j]))
            expected[i] += np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    np.testing.assert_allclose(d.kl(other), expected, rtol=1e-4)
    np.testing.assert_allclose(d.kl(d), 0.0, atol=1e-6)


@pytest.mark.parametrize("component", range(3))
def test_normal_samples_by_density(component):
    d = Normal(jnp.asarray(MEAN[0]), jnp.asarray(LOG_STD[0]))
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (20_000, 3)), d)
    draws = np.asarray(jax.jit(Normal.sample)(many, jax.random.key(1)))[:, component]
    cdf = scipy.stats.norm(MEAN[0, component], np.exp(LOG_STD[0, component])).cdf
    assert scipy.stats.kstest(draws, cdf).pvalue > 1e-3


def test_distributions_vmap_and_have_any_leading_shape():
    d = Categorical(jnp.asarray(LOGITS).reshape(2, 2, 5))
    action = jnp.zeros((2, 2), jnp.int32)
    np.testing.assert_array_equal(jax.vmap(Categorical.log_prob)(d, action), d.log_prob(action))
    n = Normal(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
    np.testing.assert_array_equal(jax.vmap(lambda d: d.entropy())(n), n.entropy())


@pytest.mark.parametrize("measure", ["entropy", "kl"])
def test_a_forbidden_action_has_a_finite_gradient(measure):
    """Masked actions have the logit -inf; the others' gradients are those without them."""
    logits, other = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([0.5, 0.5, -jnp.inf])

    def value(x, y):
        d = Categorical(x)
        return d.entropy() if measure == "entropy" else d.kl(Categorical(y))

    masked = jax.jit(jax.grad(value))(logits, other)
    assert np.all(np.isfinite(masked))
    np.testing.assert_allclose(masked[:2], jax.grad(value)(logits[:2], other[:2]), atol=1e-6)
