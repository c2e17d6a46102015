"""Trust regions against NumPy loops and hand arithmetic."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import check_float64_grads, close
from hypothesis import given, settings
from hypothesis import strategies as st

from jrl.losses import trust_region as tr

BAD_INPUT = (AssertionError, TypeError)
KLS = np.array([0.001, 0.0021, 0.05, 0.02, 0.01, 0.3, 0.0066, 0.0067, 0.01499, 0.0151])
betas = st.floats(2.0**-10, 1024.0, width=32)
kls = st.floats(0.0, 64.0, width=32, allow_subnormal=False)


def np_ppo(beta, target, kl):
    if kl < target / 1.5:
        return beta / 2
    return beta * 2 if kl > target * 1.5 else beta


def np_ziegler(beta, target, horizon, kl, n):
    return beta * (1 + np.clip(kl / target - 1, -0.2, 0.2) * n / horizon)


def test_ppo_rule_through_jit_and_vmap():
    def f(beta, kl):
        return tr.kl_penalty(tr.init_kl_penalty(beta, 0.01), kl).beta

    for kl in KLS:
        assert float(f(3.0, float(kl))) == np_ppo(3.0, 0.01, kl)
    kl = jnp.asarray(KLS, jnp.float32)
    expected = [np_ppo(3.0, 0.01, k) for k in KLS]
    np.testing.assert_array_equal(jax.jit(jax.vmap(f, (None, 0)))(3.0, kl), expected)


def test_ppo_rule_in_a_scan_over_runs_with_other_settings():
    target, factor = jnp.array([0.003, 0.01, 0.03]), jnp.array([2.0, 2.0, 1.0])
    init = jax.vmap(lambda t, f: tr.init_kl_penalty(1.0, t, 1.5, f))(target, factor)

    def step(state, kl):
        state = jax.vmap(tr.kl_penalty, (0, None))(state, kl)
        return state, state.beta

    kl = jnp.asarray(KLS, jnp.float32)
    _, history = jax.jit(lambda s: jax.lax.scan(step, s, kl))(init)
    for run in range(2):
        beta, expected = 1.0, []
        for k in KLS:
            beta = np_ppo(beta, float(target[run]), k)
            expected.append(beta)
        np.testing.assert_array_equal(history[:, run], expected)
    assert (history[:, 2] == 1.0).all()


def test_ppo_rule_bounds_and_nan():
    state = tr.init_kl_penalty(1.0, 0.01, least=0.5, most=2.0)
    for _ in range(3):
        state = tr.kl_penalty(state, 0.0)
    assert float(state.beta) == 0.5
    for _ in range(5):
        state = tr.kl_penalty(state, math.inf)
    assert float(state.beta) == 2.0
    assert float(tr.kl_penalty(state, math.nan).beta) == 2.0


@settings(max_examples=30, deadline=None)
@given(beta=betas, kl=kls)
def test_a_fixed_coefficient_is_the_same_program(beta, kl):
    state = tr.init_kl_penalty(beta, factor=1.0)
    close(tr.kl_penalty(state, kl), tr.fixed_kl(state, kl))
    state = tr.init_proportional_kl(beta, horizon=math.inf)
    close(tr.proportional_kl(state, kl), tr.fixed_kl(state, kl))


@settings(max_examples=30, deadline=None)
@given(beta=betas, kl=kls)
def test_the_coefficient_moves_towards_the_target(beta, kl):
    for state, update in (
        (tr.init_kl_penalty(beta, 1.0), tr.kl_penalty),
        (tr.init_proportional_kl(beta, 1.0, 10.0), tr.proportional_kl),
    ):
        after = update(state, kl)
        assert (float(after.beta) - float(state.beta)) * (kl - 1.0) >= 0
        close(after._replace(beta=state.beta), state)


def test_proportional_rule_through_jit_and_vmap():
    def f(beta, target, horizon, kl, n):
        return tr.proportional_kl(tr.init_proportional_kl(beta, target, horizon), kl, n).beta

    rng = np.random.default_rng(0)
    beta, target, kl = (np.exp(rng.normal(size=(3, 12)))).astype(np.float32)
    args = [jnp.asarray(x) for x in (beta, target, np.full(12, 100.0), kl, np.full(12, 8.0))]
    expected = [np_ziegler(b, t, 100.0, k, 8.0) for b, t, k in zip(beta, target, kl, strict=True)]
    close(jax.jit(jax.vmap(f))(*args), np.array(expected))
    close(f(*[float(a[0]) for a in args]), np.float32(expected[0]))
    check_float64_grads(f, 0.3, 1.0, 10.0, 1.1, 2.0)


def test_controllers_have_float64_gradients_away_from_their_jumps():
    # The proportional rule is continuous: a clipped error still moves beta with n and horizon.
    def proportional(beta, target, horizon, clip, kl, n):
        return tr.proportional_kl(tr.init_proportional_kl(beta, target, horizon, clip), kl, n).beta

    for kl in (0.3, 0.9, 1.1, 3.0):
        check_float64_grads(proportional, 0.3, 1.0, 10.0, 0.2, kl, 2.0)

    # PPO's rule jumps where the divergence leaves its band, so it has no gradient there; on
    # either side beta is multiplied by a constant, and kl and target get none at all.
    def banded(beta, target, factor, kl):
        return tr.kl_penalty(tr.init_kl_penalty(beta, target, 1.5, factor), kl).beta

    for kl, scale in ((0.5, 0.5), (1.0, 1.0), (2.0, 2.0)):
        check_float64_grads(banded, 0.3, 1.0, 2.0, kl)
        grads = jax.grad(banded, (0, 1, 3))(0.3, 1.0, 2.0, kl)
        assert [float(g) for g in grads] == [scale, 0.0, 0.0]


def test_states_keep_their_types():
    for state, update in (
        (tr.init_kl_penalty(), tr.kl_penalty),
        (tr.init_proportional_kl(), tr.proportional_kl),
    ):
        after = update(state, jnp.float32(0.5))
        for a, b in zip(state, after, strict=True):
            assert a.dtype == b.dtype == jnp.float32
            assert not a.weak_type and not b.weak_type
            assert a.shape == b.shape == ()


def test_step_scale_reaches_the_edge():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4)).astype(np.float32)
    hessian, x = root @ root.T, rng.normal(size=4).astype(np.float32)
    scale = jax.jit(tr.step_scale)(jnp.asarray(x @ hessian @ x), 0.01)
    step = float(scale) * x
    np.testing.assert_allclose(0.5 * step @ hessian @ step, 0.01, rtol=1e-5)
    assert float(tr.step_scale(0.0, 0.01)) == 0.0
    assert float(jax.grad(tr.step_scale)(0.0, 0.01)) == 0.0
    check_float64_grads(tr.step_scale, 0.7, 0.01)
    quadratic = jnp.array([0.5, 2.0])
    close(jax.vmap(tr.step_scale, (0, None))(quadratic, 0.01), jnp.array([0.2, 0.1]))


def test_accept_step_by_hand():
    accept = jax.jit(tr.accept_step)
    for args, expected in {
        (0.1, 0.005, 0.01): True,
        (0.1, 0.01, 0.01): True,
        (0.1, 0.02, 0.01): False,
        (0.0, 0.005, 0.01): False,
        (-0.1, 0.005, 0.01): False,
        (0.1, 0.005, 0.01, 0.9, 0.1): True,
        (0.1, 0.005, 0.01, 1.1, 0.1): False,
        (math.nan, 0.005, 0.01): False,
        (0.1, math.nan, 0.01): False,
    }.items():
        assert bool(accept(*args)) is bool(tr.accept_step(*args)) is expected
    rows = jax.vmap(tr.accept_step, (0, None, None))(jnp.array([0.1, -0.1]), 0.005, 0.01)
    assert rows.tolist() == [True, False]


def test_wrong_inputs_raise():
    state, proportional = tr.init_kl_penalty(), tr.init_proportional_kl()
    for bad in (jnp.ones(2), jnp.int32(1)):
        for f in (
            lambda x: tr.kl_penalty(state, x),
            lambda x: tr.proportional_kl(proportional, x),
            lambda x: tr.proportional_kl(proportional, 1.0, x),
            lambda x: tr.step_scale(x, 0.1),
            lambda x: tr.accept_step(x, 0.1, 0.1),
            tr.init_kl_penalty,
            tr.init_proportional_kl,
        ):
            with pytest.raises(BAD_INPUT):
                f(bad)
