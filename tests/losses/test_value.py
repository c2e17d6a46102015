"""Value losses against rlax, verl, NumPy loops and arithmetic by hand."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close, golden, gradients_hold, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from jrl.losses import value

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)
wrong = (AssertionError, TypeCheckError)


def arrays(inputs, *names):
    return [jnp.asarray(inputs[name]) for name in names]


# Regression


def test_squared_is_half_the_square_and_its_gradient_is_the_error():
    out = through_jit_and_vmap(value.squared_loss, jnp.array([[3.0, -1.0], [0.0, 0.5]]))
    close(out, np.array([[4.5, 0.5], [0.0, 0.125]]))
    assert jax.grad(value.squared_loss)(-3.0 * jnp.ones(())) == -3


def test_huber_equals_rlax():
    inputs, outputs = golden("rlax", "huber_loss")
    out = through_jit_and_vmap(value.huber_loss, inputs["x"], inputs["delta"])
    close(out, outputs["out"])


def test_huber_at_infinity_and_zero():
    error = jnp.array([-1e4, -1.0, 0.0, 0.25, 30.0])
    close(value.huber_loss(error, jnp.inf), value.squared_loss(error), rtol=0, atol=0)
    close(value.huber_loss(error, 0.0), jnp.zeros(5))
    grad = jax.grad(lambda e: value.huber_loss(e, jnp.inf).sum())(error)
    close(grad, error)


@few
@given(seed=seeds, threshold=st.floats(0.125, 8, width=32))
def test_huber_gradient_is_the_clipped_error(seed, threshold):
    error = np.random.default_rng(seed).normal(0, 4, 8).astype(np.float32)
    grad = jax.vmap(jax.grad(value.huber_loss), (0, None))(jnp.asarray(error), threshold)
    close(grad, np.clip(error, -threshold, threshold))


def test_clipped_value_loss_equals_verl_with_its_gradient():
    inputs, outputs = golden("verl", "clipped_value_loss")
    v, old, target = arrays(inputs, "v", "v_old", "target")
    out = through_jit_and_vmap(value.clipped_value_loss, v, old, target, inputs["clip"])
    close(out, outputs["loss"])
    grad = jax.grad(lambda v: value.clipped_value_loss(v, old, target, 0.5).sum())(v)
    close(grad, outputs["grad"])


@few
@given(seed=seeds)
def test_clipped_value_loss_at_infinity_is_exactly_unclipped(seed):
    v, old, target = jnp.asarray(np.random.default_rng(seed).normal(0, 9, (3, 16)), jnp.float32)
    unclipped = value.squared_loss(target - v)
    assert np.array_equal(value.clipped_value_loss(v, old, target, jnp.inf), unclipped)
    grad = jax.grad(lambda v: value.clipped_value_loss(v, old, target, jnp.inf).sum())(v)
    assert np.array_equal(grad, v - target)
    assert np.all(np.asarray(value.clipped_value_loss(v, old, target, 0.3)) >= unclipped)


def test_clip_ranges_map_as_hyper_parameters():
    v, old, target = jnp.array([2.0]), jnp.array([1.0]), jnp.array([3.0])
    out = jax.vmap(value.clipped_value_loss, (None, None, None, 0))(
        v, old, target, jnp.array([0.5, 2.0])
    )
    close(out, np.array([[1.125], [0.5]]))


def test_regression_losses_have_float64_gradients():
    # No error lies at a threshold or within a finite difference of it.
    error = np.array([[-2.0, -0.3], [0.4, 3.0]])
    gradients_hold(value.squared_loss, error)
    for threshold in (0.7, 10.0):
        gradients_hold(value.huber_loss, error, threshold)

    # Inside the clip; outside it to either side, with the clamped value further off (no gradient
    # in v, but one in the clip) and with v itself further off.
    v = np.array([1.1, 1.9, 0.1, 1.9, 0.1])
    old, target = np.ones(5), np.array([2.0, 3.0, -1.0, -1.0, 3.0])

    # The old values and targets are stopped, so that finite differences of them would disagree.
    def clipped(v, clip):
        return value.clipped_value_loss(v, jnp.asarray(old), jnp.asarray(target), clip)

    gradients_hold(clipped, v, 0.5)
    grad = jax.grad(lambda v: clipped(v, 0.5).sum())(jnp.asarray(v, jnp.float32))
    close(grad, np.array([-0.9, 0.0, 0.0, 2.9, -2.9]))


# Relations of Q, V and A


def test_state_values_and_advantages_have_float64_gradients():
    rng = np.random.default_rng(0)
    q, probs = rng.normal(size=(3, 4)), rng.dirichlet(np.ones(4), 3)
    gradients_hold(value.state_value, q, probs)
    gradients_hold(value.action_advantages, q, rng.normal(size=3))
    gradients_hold(lambda q, p: value.action_advantages(q, value.state_value(q, p)), q, probs)


@few
@given(seed=seeds)
def test_value_and_advantage_relations(seed):
    rng = np.random.default_rng(seed)
    q, probs = rng.normal(size=(3, 4)), rng.dirichlet(np.ones(4), 3)
    q, probs = jnp.asarray(q, jnp.float32), jnp.asarray(probs, jnp.float32)
    v = through_jit_and_vmap(value.state_value, q, probs)
    close(v, np.array([sum(q[s, a] * probs[s, a] for a in range(4)) for s in range(3)]))
    advantages = through_jit_and_vmap(value.action_advantages, q, v)
    close(value.state_value(advantages, probs), np.zeros(3))
    close(advantages[1, 2], q[1, 2] - v[1])


# Temporal differences


CASES = {
    "td_learning": (value.td_error, "v_tm1 r_t discount_t v_t"),
    "sarsa": (value.sarsa_error, "q_tm1 a_tm1 r_t discount_t q_t a_t"),
    "expected_sarsa": (value.expected_sarsa_error, "q_tm1 a_tm1 r_t discount_t q_t probs_a_t"),
    "q_learning": (value.q_learning_error, "q_tm1 a_tm1 r_t discount_t q_t"),
    "double_q_learning": (
        value.double_q_learning_error,
        "q_tm1 a_tm1 r_t discount_t q_t_value q_t_selector",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_td_errors_equal_rlax(case):
    f, names = CASES[case]
    inputs, outputs = golden("rlax", case)
    out = through_jit_and_vmap(f, *arrays(inputs, *names.split()))
    close(out, outputs["out"])


@pytest.mark.parametrize("case", CASES)
def test_td_errors_take_any_leading_axes_and_differentiate_the_estimate_only(case):
    f, names = CASES[case]
    inputs, outputs = golden("rlax", case)
    args = arrays(inputs, *names.split())
    time_major = [jnp.stack([a, a], axis=1) for a in args]
    close(f(*time_major), np.stack([outputs["out"]] * 2, axis=1))
    floats = [i for i, a in enumerate(args) if a.dtype == jnp.float32]
    grads = jax.grad(lambda *a: f(*a).sum(), floats)(*args)
    assert np.all(np.asarray(grads[0]).reshape(5, -1).sum(1) == -1)
    assert not any(np.any(g) for g in grads[1:])


@pytest.mark.parametrize("case", CASES)
def test_td_errors_have_float64_gradients(case):
    f, names = CASES[case]
    inputs, _ = golden("rlax", case)
    first, *rest = (inputs[n] for n in names.split())

    def loss(estimate):
        return value.huber_loss(f(estimate, *(jnp.asarray(a) for a in rest)), 0.7)

    gradients_hold(loss, first)


def test_termination_stops_and_truncation_keeps_the_bootstrap():
    q = jnp.array([[1.0, 2.0]] * 2)
    discount = jnp.array([0.0, 0.9])
    out = value.q_learning_error(q, jnp.array([0, 0]), jnp.ones(2), discount, 10 * q)
    close(out, np.array([0.0, 18.0]))


def test_an_action_out_of_range_is_nan():
    q, r = jnp.array([[1.0, 2.0]]), jnp.ones(1)
    assert jnp.isnan(value.q_learning_error(q, jnp.array([2]), r, r, q))[0]


# Categorical distributions


def test_projection_and_categorical_losses_equal_rlax():
    inputs, outputs = golden("rlax", "categorical_l2_project")
    atoms, probs, support = arrays(inputs, "z_p", "probs", "z_q")
    out = jax.vmap(value.categorical_projection)(atoms, probs, support)
    close(out, outputs["out"])
    assert np.all(support[0] == support[1])
    shared = through_jit_and_vmap(
        lambda x, p: value.categorical_projection(x, p, support[0]), atoms, probs
    )
    close(shared, out)

    inputs, outputs = golden("rlax", "categorical_td_learning")
    logits, logits_t, r, discount = arrays(
        inputs, "v_logits_tm1", "v_logits_t", "r_t", "discount_t"
    )

    def loss(logits, logits_t, r, discount, support):
        target = value.categorical_td_target(r, discount, jax.nn.softmax(logits_t), support)
        return value.categorical_cross_entropy(logits, target)

    support = jnp.asarray(inputs["v_atoms_t"][0])
    out = jax.vmap(loss, (0, 0, 0, 0, None))(logits, logits_t, r, discount, support)
    close(out, outputs["out"])
    close(jax.jit(loss)(logits, logits_t, r, discount, support), outputs["out"])


def test_c51_of_our_pieces_equals_rlax():
    inputs, outputs = golden("rlax", "categorical_q_learning")
    logits, logits_t, r, discount, a = arrays(
        inputs, "q_logits_tm1", "q_logits_t", "r_t", "discount_t", "a_tm1"
    )
    support = jnp.asarray(inputs["q_atoms_t"][0])
    probs_t = jax.nn.softmax(logits_t)
    best = jnp.argmax(probs_t @ support, axis=-1)
    rows = jnp.arange(5)
    target = value.categorical_td_target(r, discount, probs_t[rows, best], support)
    close(value.categorical_cross_entropy(logits[rows, a], target), outputs["out"])


def test_projection_equals_a_loop_that_scatters():
    rng = np.random.default_rng(3)
    support = np.array([-2.0, -1.0, 0.5, 4.0], np.float32)
    atoms = np.array([-9.0, -1.0, 0.0, 1.5, 3.9, 4.0, 7.0], np.float32)
    probs = rng.dirichlet(np.ones(7)).astype(np.float32)
    expected = np.zeros(4)
    for x, p in zip(np.clip(atoms, -2, 4), probs, strict=True):
        upper = int(np.clip(np.searchsorted(support, x), 1, 3))
        share = (x - support[upper - 1]) / (support[upper] - support[upper - 1])
        expected[upper] += p * share
        expected[upper - 1] += p * (1 - share)
    out = value.categorical_projection(*map(jnp.asarray, (atoms, probs, support)))
    close(out, expected)


@few
@given(seed=seeds)
def test_projection_conserves_mass_and_the_mean_inside_the_support(seed):
    rng = np.random.default_rng(seed)
    support = np.sort(rng.choice(np.arange(-20, 20), 6, replace=False) / 2).astype(np.float32)
    atoms = rng.uniform(support[0], support[-1], (2, 5)).astype(np.float32)
    probs = rng.dirichlet(np.ones(5), 2).astype(np.float32)
    out = value.categorical_projection(*map(jnp.asarray, (atoms, probs, support)))
    assert np.all(np.asarray(out) >= 0)
    close(out.sum(-1), np.ones(2))
    close(out @ support, (atoms * probs).sum(-1), rtol=1e-4, atol=1e-4)
    outside = value.categorical_projection(
        jnp.asarray(atoms + 99), probs := jnp.asarray(probs), jnp.asarray(support)
    )
    close(outside[:, -1], probs.sum(-1))


def test_projection_onto_its_own_support_is_the_identity():
    probs = jnp.array([0.1, 0.2, 0.3, 0.4])
    support = jnp.array([-1.0, 0.0, 2.0, 7.0])
    close(value.categorical_projection(support, probs, support), probs)


def test_categorical_gradients():
    rng = np.random.default_rng(0)
    logits, probs = rng.normal(size=(3, 5)), rng.dirichlet(np.ones(5), 3)
    gradients_hold(
        lambda x: value.categorical_cross_entropy(x, jnp.asarray(probs, x.dtype)), logits
    )
    atoms = rng.uniform(-2, 2, (3, 5))
    support = np.linspace(-1, 1, 4)
    gradients_hold(value.categorical_projection, atoms, probs, support)
    target = jax.grad(
        lambda r: value.categorical_td_target(r, r, jnp.ones((2, 4)) / 4, jnp.arange(4.0)).sum()
    )(jnp.ones(2))
    close(target, np.zeros(2))
    grad = jax.grad(lambda x: value.categorical_cross_entropy(x, x[::-1]))(jnp.array([0.0, 1.0]))
    softmax = np.exp([0, 1]) / np.exp([0, 1]).sum()
    close(grad, softmax - np.array([1.0, 0.0]))


# Quantiles


@pytest.mark.parametrize("threshold", ["0.0", "0.5", "1.0"])
def test_quantile_huber_equals_rlax(threshold):
    inputs, outputs = golden("rlax", f"quantile_regression_huber_{threshold}")
    out = through_jit_and_vmap(
        value.quantile_huber_loss,
        *arrays(inputs, "dist_src", "tau_src", "dist_target"),
        inputs["huber_param"],
    )
    close(out, outputs["out"])


def test_quantile_midpoints_serve_every_example():
    taus = value.quantile_midpoints(4)
    close(taus, np.array([0.125, 0.375, 0.625, 0.875]))
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(2, 3, n)), jnp.float32) for n in (4, 6))
    out = value.quantile_huber_loss(x, taus, y, 0.5)
    assert out.shape == (2, 3)
    close(out, value.quantile_huber_loss(x, jnp.broadcast_to(taus, x.shape), y, 0.5))
    with pytest.raises(ValueError, match="at least one"):
        value.quantile_midpoints(0)


@few
@given(seed=seeds)
def test_quantile_loss_is_least_at_the_quantiles(seed):
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 3, 41).astype(np.float32)
    taus = value.quantile_midpoints(4)
    # Levels k / 8 of 41 sorted samples: the pinball loss is least at sample ceil(41 k / 8).
    best = np.sort(samples)[[int(np.ceil(41 * float(t))) - 1 for t in taus]]

    def loss(x):
        return value.quantile_huber_loss(jnp.asarray(x), taus, jnp.asarray(samples), 0.0)

    least = float(loss(best))
    for _ in range(5):
        moved = (best + rng.normal(0, 0.5, 4)).astype(np.float32)
        assert float(loss(moved)) >= least - 1e-5


def test_quantile_gradients():
    rng = np.random.default_rng(0)
    x, y, taus = rng.normal(size=(3, 4)), rng.normal(size=(3, 6)), rng.uniform(size=(3, 4))
    for threshold in (0.0, 0.6, 10.0):
        gradients_hold(
            lambda x, k=threshold: value.quantile_huber_loss(
                x, jnp.asarray(taus), jnp.asarray(y), k
            ),
            x,
        )
    grad = jax.grad(lambda y: value.quantile_huber_loss(y, jnp.ones(2), y + 1).sum())(jnp.ones(2))
    assert np.all(np.asarray(grad) == -1)


# What raises


def bad_calls():
    x, q, a = jnp.ones(3), jnp.ones((3, 2)), jnp.zeros(3, int)
    yield value.squared_loss, (a,)
    yield value.huber_loss, (a, 1.0)
    yield value.huber_loss, (x, x)
    yield value.clipped_value_loss, (x, x, q, 0.2)
    yield value.clipped_value_loss, (x, x, a, 0.2)
    yield value.clipped_value_loss, (x, x, x, x)
    yield value.state_value, (q, x)
    yield value.action_advantages, (q, q)
    yield value.td_error, (x, x, x, jnp.ones(2))
    yield value.td_error, (x, a, x, x)
    yield value.sarsa_error, (q, x, x, x, q, a)
    yield value.sarsa_error, (q, a, x, x, q, q)
    yield value.expected_sarsa_error, (q, a, x, x, q, x)
    yield value.q_learning_error, (q, a, x, x, jnp.ones((3, 4)))
    yield value.q_learning_error, (q, a[:2], x, x, q)
    yield value.double_q_learning_error, (q, a, x, x, q, x)
    yield value.categorical_projection, (q, x, jnp.ones(2))
    yield value.categorical_projection, (q, q, jnp.ones(1))
    yield value.categorical_td_target, (x, x, q, x)
    yield value.categorical_cross_entropy, (q, q.astype(int))
    yield value.quantile_huber_loss, (q, q, x)
    yield value.quantile_huber_loss, (q, q, jnp.ones((2, 2)))


@pytest.mark.parametrize("unwrap", [False, True], ids=["jaxtyping", "chex"])
def test_wrong_ranks_shapes_and_dtypes_raise(unwrap):
    for f, args in bad_calls():
        with pytest.raises(wrong):
            (inspect.unwrap(f) if unwrap else f)(*args)
