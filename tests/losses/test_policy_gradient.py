"""Policy gradients against rlax's numbers, NumPy loops and hand arithmetic."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import check_float64_grads, close, golden, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st

from jrl.losses import policy_gradient as pg

N = 7
BAD_INPUT = (AssertionError, TypeError)
INF = math.inf
seeds = given(seed=st.integers(0, 2**31))
few = settings(max_examples=20, deadline=None)


def draw(seed, count, n=N):
    return [jnp.asarray(x) for x in np.random.default_rng(seed).normal(size=(count, n))]


def f32(*values):
    return jnp.asarray(values, jnp.float32)


def gradient(f, x):
    return jax.grad(lambda x: f(x).sum())(x)


# What each elementwise loss is, one element at a time, in NumPy.


def np_clipped(log_ratio, adv, low, high, dual):
    ratio = np.exp(log_ratio)
    objective = min(ratio * adv, np.clip(ratio, 1 - low, 1 + high) * adv)
    return -(max(objective, dual * adv) if adv < 0 else objective)


def np_decoupled(log_prob, prox, behaviour, adv, low, high, dual, cap):
    weight = min(np.exp(prox - behaviour), cap)
    return weight * np_clipped(log_prob - prox, adv, low, high, dual)


ELEMENTWISE = {
    "reinforce": (pg.reinforce, lambda lp, w: -lp * w, 2, ()),
    "state_value_baseline": (pg.state_value_baseline, lambda q, v: q - v, 2, ()),
    "surrogate": (pg.surrogate, lambda lr, a: -np.exp(lr) * a, 2, ()),
    "clipped_surrogate": (pg.clipped_surrogate, np_clipped, 2, (0.1, 0.3, 1.9)),
    "kl_penalized_surrogate": (
        pg.kl_penalized_surrogate,
        lambda lr, a, kl, beta: -(np.exp(lr) * a - beta * kl),
        3,
        (0.7,),
    ),
    "decoupled": (pg.decoupled_clipped_surrogate, np_decoupled, 4, (0.1, 0.3, 1.9, 1.5)),
    "deterministic": (pg.deterministic_policy_gradient, lambda a, dq: -a * dq, 2, ()),
}
every_loss = pytest.mark.parametrize("name", ELEMENTWISE)


@every_loss
def test_numpy_through_jit_and_vmap(name):
    f, reference, count, hyper = ELEMENTWISE[name]
    args = draw(0, count, 40)
    result = through_jit_and_vmap(f, *args, *hyper)
    close(
        result, np.array([reference(*map(float, row), *hyper) for row in zip(*args, strict=True)])
    )
    shaped = f(*[a.reshape(2, 4, 5) for a in args], *hyper)
    close(shaped, result.reshape(2, 4, 5))


@every_loss
def test_wrong_inputs_raise(name):
    f, _, count, hyper = ELEMENTWISE[name]
    args = draw(1, count)
    with pytest.raises(BAD_INPUT):
        f(args[0].astype(jnp.int32), *args[1:], *hyper)
    with pytest.raises(BAD_INPUT):
        f(args[0][1:], *args[1:], *hyper)
    with pytest.raises(BAD_INPUT):
        f(args[0][:, None], *args[1:], *hyper)
    if hyper:
        with pytest.raises(BAD_INPUT):
            f(*args, jnp.ones(N), *hyper[1:])


@every_loss
def test_bfloat16_stays_bfloat16(name):
    f, _, count, hyper = ELEMENTWISE[name]
    args = [a.astype(jnp.bfloat16) for a in draw(2, count)]
    assert f(*args, *hyper).dtype == jnp.bfloat16


def test_gradients():
    # Finite differences see the constants move, so these stay outside.
    log_prob, proximal, behaviour, adv, kl = draw(3, 5)
    entropy, value = draw(4, 2)
    clip = (0.1, 0.3, 1.9)
    check_float64_grads(lambda x: pg.reinforce(x, adv.astype(x.dtype)), log_prob)
    check_float64_grads(lambda x: pg.surrogate(x, adv.astype(x.dtype)), log_prob)
    check_float64_grads(lambda x: pg.clipped_surrogate(x, adv.astype(x.dtype), *clip), log_prob)
    check_float64_grads(
        lambda x, e: pg.clipped_surrogate(x, adv.astype(x.dtype), e, 2.0 * e), log_prob, 0.1
    )
    check_float64_grads(
        lambda x, k, b: pg.kl_penalized_surrogate(x, adv.astype(x.dtype), k, b), log_prob, kl, 0.5
    )

    def decoupled(x):
        others = [c.astype(x.dtype) for c in (proximal, behaviour, adv)]
        return pg.decoupled_clipped_surrogate(x, *others, *clip, 1.5)

    check_float64_grads(decoupled, log_prob)
    check_float64_grads(
        lambda x, h: pg.actor_critic(x, adv.astype(x.dtype), value.astype(x.dtype), h)[::2],
        log_prob,
        entropy,
    )
    check_float64_grads(lambda v: pg.actor_critic(v, adv.astype(v.dtype), v, v).value, value)
    check_float64_grads(pg.state_value_baseline, log_prob, value)
    check_float64_grads(pg.batch_mean_baseline, adv)
    check_float64_grads(pg.leave_one_out_baseline, adv)
    check_float64_grads(pg.entropy_bonus, adv.reshape(1, N))
    check_float64_grads(
        lambda a: pg.deterministic_policy_gradient(a, adv.astype(a.dtype)), log_prob
    )


def test_constants_get_no_gradient():
    a, b, c, d = draw(5, 4)
    assert (gradient(lambda w: pg.reinforce(a, w), b) == 0).all()
    assert (gradient(lambda w: pg.surrogate(a, w), b) == 0).all()
    assert (gradient(lambda w: pg.clipped_surrogate(a, w), b) == 0).all()
    assert (gradient(lambda w: pg.deterministic_policy_gradient(a, w), b) == 0).all()
    for at in (1, 2, 3):
        f = lambda w, at=at: pg.decoupled_clipped_surrogate(  # noqa: E731
            *[w if i == at else x for i, x in enumerate((a, b, c, d))]
        )
        assert (gradient(f, (a, b, c, d)[at]) == 0).all()
    terms = jax.jacobian(lambda v: pg.actor_critic(a, b, v, c))(d)
    assert (terms.policy == 0).all()
    close(jnp.diagonal(terms.value), d - b)
    assert (gradient(lambda g: pg.actor_critic(a, g, b, c).value, d) == 0).all()


@few
@seeds
def test_ratio_one_gives_the_policy_gradient(seed):
    log_prob, adv, other = draw(seed, 3)
    expected = gradient(lambda x: pg.reinforce(x, adv), log_prob)
    losses = {
        "surrogate": lambda x: pg.surrogate(x - log_prob, adv),
        "clipped": lambda x: pg.clipped_surrogate(x - log_prob, adv),
        "eps 0": lambda x: pg.clipped_surrogate(x - log_prob, adv, 0.0, 0.0, 1.0),
        "dual": lambda x: pg.clipped_surrogate(x - log_prob, adv, 0.2, 0.2, 3.0),
        "penalty": lambda x: pg.kl_penalized_surrogate(x - log_prob, adv, 0 * other, 2.0),
        "decoupled": lambda x: pg.decoupled_clipped_surrogate(x, log_prob, log_prob, adv),
    }
    for f in losses.values():
        close(gradient(f, log_prob), expected)
        close(f(log_prob), -adv)


@few
@seeds
def test_infinite_eps_is_unclipped(seed):
    log_ratio, adv = draw(seed, 2)
    log_ratio = 5 * log_ratio
    unclipped = lambda x: pg.surrogate(x, adv)  # noqa: E731
    clipped = lambda x: pg.clipped_surrogate(x, adv, INF)  # noqa: E731
    np.testing.assert_array_equal(clipped(log_ratio), unclipped(log_ratio))
    np.testing.assert_array_equal(gradient(clipped, log_ratio), gradient(unclipped, log_ratio))
    traced = jax.jit(jax.grad(lambda x, e: pg.clipped_surrogate(x, adv, e, e, e).sum()))
    np.testing.assert_allclose(
        traced(log_ratio, jnp.float32(INF)), gradient(unclipped, log_ratio), rtol=1e-6
    )


@few
@seeds
def test_clipping_is_pessimistic(seed):
    log_ratio, adv = draw(seed, 2)
    loss = pg.clipped_surrogate(log_ratio, adv, 0.1, 0.3)
    assert (loss >= pg.surrogate(log_ratio, adv)).all()
    # The dual clip takes some of the pessimism back, and only where the advantage is negative.
    dual = pg.clipped_surrogate(log_ratio, adv, 0.1, 0.3, 1.5)
    assert (dual <= loss).all()
    np.testing.assert_array_equal(jnp.where(adv >= 0, dual, 0), jnp.where(adv >= 0, loss, 0))
    assert (jnp.where(adv < 0, dual <= -1.5 * adv + 1e-6, True)).all()


def test_clip_by_hand():
    log_ratio = jnp.log(f32(2.0, 0.5, 2.0, 0.5, 8.0))
    adv = f32(1, 1, -1, -1, -1)
    f = lambda x: pg.clipped_surrogate(x, adv, 0.25, 0.75, 4.0)  # noqa: E731
    close(f(log_ratio), f32(-1.75, -0.5, 2.0, 0.75, 4.0))
    # d/dx of -exp(x) A where it is not clipped.
    close(gradient(f, log_ratio), f32(0.0, -0.5, 2.0, 0.0, 0.0))


@pytest.mark.parametrize("eps", [0.2, INF])
@pytest.mark.parametrize("dual", [3.0, INF])
def test_extreme_ratios_stay_finite(eps, dual):
    log_ratio = f32(-INF, -1e4, -100, 100, 1e4, 100, -100, 88.8)
    for sign in (1.0, -1.0, 0.0):
        adv = jnp.full_like(log_ratio, sign)
        f = lambda x, adv=adv: pg.clipped_surrogate(x, adv, eps, eps, dual)  # noqa: E731
        g = jax.grad(lambda x, e, f=f, adv=adv: pg.clipped_surrogate(x, adv, e, e, dual).sum(), 1)
        assert jnp.isfinite(f(log_ratio)).all()
        assert jnp.isfinite(gradient(f, log_ratio)).all()
        assert jnp.isfinite(g(log_ratio, eps)).all()
    h = lambda x: pg.decoupled_clipped_surrogate(x, -x, x, 1 + 0 * x, eps)  # noqa: E731
    far = f32(-1e4, 1e4, 100, -100)
    assert jnp.isfinite(h(jnp.clip(far, -40, 40))).all()
    assert jnp.isfinite(gradient(h, jnp.clip(far, -40, 40))).all()
    with jax.debug_nans(True):
        gradient(lambda x: pg.clipped_surrogate(x, adv, eps, eps, dual), log_ratio)


def test_hyper_parameters_are_traced_and_vmapped():
    log_ratio, adv, kl = draw(6, 3)
    epss = f32(0.0, 0.2, INF)
    rows = jax.jit(jax.vmap(lambda e: pg.clipped_surrogate(log_ratio, adv, e)))(epss)
    for e, row in zip((0.0, 0.2, INF), rows, strict=True):
        close(row, pg.clipped_surrogate(log_ratio, adv, e, e))
    rows = jax.vmap(lambda b: pg.kl_penalized_surrogate(log_ratio, adv, kl, b))(f32(0.0, 2.0))
    close(rows[0], pg.surrogate(log_ratio, adv))
    close(rows[1] - rows[0], 2.0 * kl, atol=1e-5)


def test_decoupled_reduces_to_clipped():
    log_prob, proximal, behaviour, adv = draw(7, 4)
    close(
        pg.decoupled_clipped_surrogate(log_prob, proximal, proximal, adv, 0.1, 0.3, 2.0),
        pg.clipped_surrogate(log_prob - proximal, adv, 0.1, 0.3, 2.0),
    )
    # Without clipping the centre cancels out: only pi / pi_behaviour is left.
    close(
        pg.decoupled_clipped_surrogate(log_prob, proximal, behaviour, adv, INF),
        pg.surrogate(log_prob - behaviour, adv),
        rtol=1e-4,
    )
    capped = pg.decoupled_clipped_surrogate(*map(f32, (0, 1, -1, 2)), 0.2, 0.2, INF, 1.5)
    close(capped, f32(-1.5 * math.exp(-1.0) * 2.0))


def test_actor_critic_by_hand_through_jit_and_vmap():
    result = through_jit_and_vmap(
        pg.actor_critic, f32(-1, -2), f32(3, 0), f32(1, 2), f32(0.5, 0.25)
    )
    close(tuple(result), (f32(2, -4), f32(2, 2), f32(-0.5, -0.25)))
    with pytest.raises(BAD_INPUT):
        pg.actor_critic(f32(1), f32(1), f32(1), f32(1, 2))


# Baselines couple examples: the axis that is mapped is another one.


def np_baseline(returns, mask, leave_out):
    out = np.zeros_like(returns)
    for i in range(len(returns)):
        peers = [returns[j] for j in range(len(returns)) if mask[j] and (j != i or not leave_out)]
        if mask[i] and peers:
            out[i] = returns[i] - np.mean(peers)
    return out


@pytest.mark.parametrize("leave_out", [False, True])
def test_baselines(leave_out):
    f = pg.leave_one_out_baseline if leave_out else pg.batch_mean_baseline
    rng = np.random.default_rng(8)
    returns = rng.normal(size=(5, 4)).astype(np.float32)
    mask = rng.random((5, 4)) < 0.6
    mask[:, 0], mask[:, 1] = False, [0, 0, 1, 0, 0]
    for m in (np.ones((5, 4), bool), mask):
        expected = np.stack([np_baseline(returns[:, i], m[:, i], leave_out) for i in range(4)], 1)
        garbage = jnp.where(m, returns, jnp.nan)
        result = through_jit_and_vmap(f, garbage, jnp.asarray(m), axis=1)
        close(result, expected)
        close(f(garbage.T, jnp.asarray(m.T).astype(jnp.float32), 1), expected.T)
        total = lambda r, m=m: (f(r, jnp.asarray(m)) ** 2).sum()  # noqa: E731
        assert jnp.isfinite(jax.grad(total)(garbage)).all()
    close(f(jnp.asarray(returns)), f(jnp.asarray(returns), jnp.ones((5, 4))))
    with pytest.raises(BAD_INPUT):
        f(jnp.arange(3))
    with pytest.raises(BAD_INPUT):
        f(jnp.ones(3), jnp.ones(2))


def test_leave_one_out_is_the_scaled_batch_mean():
    (r,) = draw(9, 1)
    close(pg.leave_one_out_baseline(r), N / (N - 1) * pg.batch_mean_baseline(r), rtol=1e-4)
    assert (pg.leave_one_out_baseline(f32(3.0)) == 0).all()


def test_entropy_by_hand_and_forbidden_actions():
    logits = jnp.log(f32(0.5, 0.25, 0.25))[None]
    close(through_jit_and_vmap(pg.entropy_bonus, logits), f32(-1.5 * math.log(2)))
    logits = f32(1.0, 2.0, -INF)
    close(pg.entropy_bonus(logits), pg.entropy_bonus(logits[:2]))
    g = jax.grad(pg.entropy_bonus)(logits)
    close(g, jnp.append(jax.grad(pg.entropy_bonus)(logits[:2]), 0.0))
    with pytest.raises(BAD_INPUT):
        pg.entropy_bonus(jnp.ones(3, jnp.int32))
    with pytest.raises(BAD_INPUT):
        pg.entropy_bonus(jnp.float32(1.0))


# rlax


@pytest.mark.parametrize("eps", ["0.1", "0.2"])
def test_rlax_clipped_surrogate(eps):
    x, outputs = golden("rlax", f"clipped_surrogate_{eps}")
    ratio, adv = jnp.asarray(x["prob_ratios_t"]), jnp.asarray(x["adv_t"])
    f = lambda r: pg.clipped_surrogate(jnp.log(r), adv, float(eps))  # noqa: E731
    close(f(ratio), outputs["out"])
    close(gradient(f, ratio), outputs["gradient"])


def test_rlax_policy_gradient():
    x, outputs = golden("rlax", "policy_gradient_loss")
    adv = jnp.asarray(x["adv_t"])

    def f(logits):
        log_probs = jax.nn.log_softmax(logits)
        return pg.reinforce(jnp.take_along_axis(log_probs, x["a_t"][:, None], 1)[:, 0], adv)

    logits = jnp.asarray(x["logits_t"])
    close(f(logits), outputs["out"])
    close(gradient(f, logits), outputs["gradient"])


def test_rlax_entropy():
    x, outputs = golden("rlax", "entropy_loss")
    close(pg.entropy_bonus(jnp.asarray(x["logits_t"])), outputs["out"])


def test_rlax_dpg():
    x, outputs = golden("rlax", "dpg_loss")
    dq = jnp.asarray(x["dqda_t"])
    f = lambda a: pg.deterministic_policy_gradient(a, dq)  # noqa: E731
    close(gradient(f, jnp.asarray(x["a_t"])), outputs["gradient"])
