"""Returns against explicit sums in NumPy, rlax's numbers and hand arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import check_float64_grads, close, golden, through_jit_and_vmap
from hypothesis import given, settings
from hypothesis import strategies as st

from jrl.losses import returns

T, B = 6, 3
BAD_INPUT = (AssertionError, TypeError)
FLOATS = ("r", "d", "v0", "v1", "rho", "q", "lam")


def sequences(seed, t=T, b=B):
    """Draws a batch in which episodes end, by termination or truncation, on the way."""
    rng = np.random.default_rng(seed)
    terminated, truncated = rng.random((2, t, b)) < 0.2
    x = {k: rng.normal(size=(t, b)) for k in ("r", "v0", "v1", "q")}
    x |= {"d": 0.9 * (1 - terminated), "rho": np.exp(rng.normal(size=(t, b)))}
    x |= {"lam": rng.random((t, b)), "reset": terminated | truncated}
    return {k: v if v.dtype == bool else v.astype(np.float32) for k, v in x.items()}


# Explicit sums over the rest of the episode, for one column and no mask.


def column_sum(x, t, term, trace, last=None):
    """Sums weight * term(k) for k >= t; `last(k)` replaces the term of the final row."""
    total, weight = 0.0, 1.0
    for k in range(t, len(x["r"])):
        final = x["reset"][k] or k == len(x["r"]) - 1
        total += weight * (last(k) if last and final else term(k))
        if final:
            break
        weight *= trace(k)
    return total


def np_reward_to_go(x, t):
    return column_sum(x, t, lambda k: x["r"][k], lambda k: 1.0)


def np_discounted(x, t):
    last = lambda k: x["r"][k] + x["d"][k] * x["v1"][k]  # noqa: E731
    return column_sum(x, t, lambda k: x["r"][k], lambda k: x["d"][k], last)


def np_n_step(x, t, n=3):
    total, weight = 0.0, 1.0
    for k in range(t, t + n):
        total += weight * x["r"][k]
        weight *= x["d"][k]
        if x["reset"][k] or k == len(x["r"]) - 1 or k == t + n - 1:
            return total + weight * x["v1"][k]
    return None


def np_lambda(x, t):
    one_step, trace = x["r"] + x["d"] * x["v1"], x["d"] * x["lam"]
    mixed = one_step - trace * x["v1"]
    return column_sum(x, t, mixed.__getitem__, trace.__getitem__, one_step.__getitem__)


def np_gae(x, t):
    delta = x["r"] + x["d"] * x["v1"] - x["v0"]
    return column_sum(x, t, lambda k: delta[k], lambda k: x["d"][k] * x["lam"][k])


def np_vtrace(x, t):
    delta = x["r"] + x["d"] * x["v1"] - x["v0"]

    def error(t):
        trace = lambda k: x["d"][k] * x["lam"][k] * min(x["rho"][k], 1.1)  # noqa: E731
        return column_sum(x, t, lambda k: min(x["rho"][k], 1.3) * delta[k], trace)

    final = x["reset"][t] or t == len(x["r"]) - 1
    later = 0.0 if final else x["lam"][t] * error(t + 1)
    advantage = min(x["rho"][t], 1.2) * (delta[t] + x["d"][t] * later)
    return error(t), x["v0"][t] + error(t), advantage


def np_retrace(x, t):
    """Munos et al. 2016: Q(s_t, a_t) plus the trace-weighted expected TD errors."""
    taken = lambda k: 0.0 if k == t else x["q"][k - 1]  # noqa: E731
    trace = x["d"] * x["lam"] * np.minimum(x["rho"], 1.0)
    one_step = x["r"] + x["d"] * x["v1"]
    return column_sum(x, t, lambda k: one_step[k] - taken(k), trace.__getitem__)


CASES = {  # jrl's function, names of its arguments, and the explicit sum
    "reward_to_go": (returns.reward_to_go, "r", np_reward_to_go),
    "discounted_returns": (returns.discounted_returns, "r d v1", np_discounted),
    "n_step_returns": (
        lambda r, d, v1, reset, mask: returns.n_step_returns(r, d, v1, 3, reset, mask),
        "r d v1",
        np_n_step,
    ),
    "lambda_returns": (returns.lambda_returns, "r d v1 lam", np_lambda),
    "generalized_advantages": (returns.generalized_advantages, "r d lam v0 v1", np_gae),
    "vtrace": (
        lambda *args: returns.vtrace(*args[:6], 1.3, 1.1, 1.2, *args[6:]),
        "v0 v1 r d rho lam",
        np_vtrace,
    ),
    "retrace": (returns.retrace, "q v1 r d rho lam", np_retrace),
}
JITTED = {name: jax.jit(f) for name, (f, *_) in CASES.items()}
RLAX_VTRACE = ["vtrace_td_error_and_advantage", "vtrace_impala", "vtrace", "vtrace_masked"]
every_case = pytest.mark.parametrize("name", CASES)


def arguments(name, x, mask=None):
    return [jnp.asarray(x[k]) for k in CASES[name][1].split()] + [jnp.asarray(x["reset"]), mask]


def reference(name, x, mask=None):
    """Applies the explicit sums to each column with the masked rows deleted."""
    mask = np.ones((T, B), bool) if mask is None else mask
    outputs = []
    for b in range(B):
        rows = np.flatnonzero(mask[:, b])
        column = {k: v[rows, b].astype(bool if k == "reset" else np.float64) for k, v in x.items()}
        if name in ("generalized_advantages", "vtrace"):
            for i in np.flatnonzero(np.diff(rows) > 1):
                if not column["reset"][i]:
                    column["v1"][i] = column["v0"][i + 1]
        out = [np.asarray(CASES[name][2](column, i), float) for i in range(len(rows))]
        full = np.zeros((T, 3 if name == "vtrace" else 1))
        for row, value in zip(rows, out, strict=True):
            full[row] = value
        outputs.append(full)
    stacked = np.stack(outputs, axis=1)
    return tuple(np.moveaxis(stacked, -1, 0)) if name == "vtrace" else stacked[..., 0]


def as_tuple(name, result):
    return tuple(result) if name == "vtrace" else result


@every_case
def test_explicit_sums_through_jit_and_vmap(name):
    x = sequences(0)
    result = through_jit_and_vmap(CASES[name][0], *arguments(name, x), axis=1)
    close(as_tuple(name, result), reference(name, x))
    mask = np.random.default_rng(1).random((T, B)) < 0.7
    result = through_jit_and_vmap(CASES[name][0], *arguments(name, x, mask), axis=1)
    close(as_tuple(name, result), reference(name, x, mask))


@every_case
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), lengths=st.lists(st.integers(0, T), min_size=B, max_size=B))
def test_padding_equals_a_shorter_array(name, seed, lengths):
    x = sequences(seed)
    mask = np.arange(T)[:, None] < np.array(lengths)[None]
    expected = reference(name, x, mask)
    for k in FLOATS:
        x[k] = np.where(mask, x[k], np.float32("nan"))
    close(as_tuple(name, JITTED[name](*arguments(name, x, jnp.asarray(mask)))), expected, atol=1e-5)


@every_case
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.lists(st.booleans(), min_size=T * B, max_size=T * B))
def test_holes_equal_deletion(name, seed, bits):
    x = sequences(seed)
    mask = np.array(bits).reshape(T, B)
    expected = reference(name, x, mask)
    for k in FLOATS:
        x[k] = np.where(mask, x[k], np.float32("inf"))
    close(as_tuple(name, JITTED[name](*arguments(name, x, jnp.asarray(mask)))), expected, atol=1e-5)


@every_case
def test_masked_array_equals_truncated_array(name):
    x, f = sequences(3), CASES[name][0]
    short = f(*arguments(name, {k: v[:4] for k, v in x.items()}))
    mask = jnp.broadcast_to((jnp.arange(T) < 4).astype(jnp.float32)[:, None], (T, B))
    masked = f(*arguments(name, x, mask))
    deep = {k: v.reshape(T, 1, B, 1) for k, v in x.items()}
    deep = f(*arguments(name, deep, mask.reshape(T, 1, B, 1)))
    close(jax.tree.map(lambda y: y.reshape(T, B), deep), masked)
    close(jax.tree.map(lambda y: y[:4], masked), short)
    assert all((y[4:] == 0).all() for y in jax.tree.leaves(masked))


@every_case
def test_full_mask_and_no_reset_are_the_defaults(name):
    x = sequences(4)
    x["reset"] = np.zeros((T, B), bool)
    f, args = CASES[name][0], arguments(name, x, jnp.ones((T, B), bool))
    close(f(*args[:-2], None, None), f(*args))


@every_case
def test_gradients(name):
    x, f = sequences(5), CASES[name][0]
    *args, reset, _ = arguments(name, x)
    mask = np.random.default_rng(1).random((T, B)) < 0.7
    check_float64_grads(lambda *a: f(*a, jnp.asarray(reset), None), *args)
    check_float64_grads(lambda *a: f(*a, jnp.asarray(reset), jnp.asarray(mask)), *args)


@every_case
def test_gradients_ignore_nan_in_masked_rows(name):
    x = sequences(6)
    mask = np.random.default_rng(2).random((T, B)) < 0.6
    for k in FLOATS:
        x[k] = np.where(mask, x[k], np.float32("nan"))
    *args, reset, _ = arguments(name, x)

    def total(args):
        return sum(y.sum() for y in jax.tree.leaves(CASES[name][0](*args, reset, mask)))

    mask = jnp.asarray(mask)
    for gradient in jax.grad(total)(args):
        assert jnp.isfinite(gradient).all()
        assert (jnp.where(mask, 0.0, gradient) == 0).all()


@every_case
def test_bfloat16_stays_bfloat16(name):
    *args, reset, _ = arguments(name, sequences(7))
    args = [a.astype(jnp.bfloat16) for a in args]
    for y in jax.tree.leaves(CASES[name][0](*args, reset, None)):
        assert y.dtype == jnp.bfloat16


@every_case
def test_wrong_inputs_raise(name):
    f, args = CASES[name][0], arguments(name, sequences(8))
    with pytest.raises(BAD_INPUT):
        f(args[0].astype(jnp.int32), *args[1:])
    with pytest.raises(BAD_INPUT):
        f(args[0], *args[1:-2], args[-2].astype(jnp.float32), None)
    with pytest.raises(BAD_INPUT):
        f(*args[:-2], args[-2][:, :1], None)
    with pytest.raises(BAD_INPUT):
        f(*args[:-1], jnp.ones((T,)))
    with pytest.raises(BAD_INPUT):
        f(*[a[:0] for a in args[:-1]], None)
    if name != "reward_to_go":
        with pytest.raises(BAD_INPUT):
            f(args[0][1:], *args[1:])
        with pytest.raises(BAD_INPUT):
            f(args[0][:, 0], *args[1:])


def test_n_must_be_positive_and_may_pass_the_end():
    x = sequences(9)
    r, d, v = (jnp.asarray(x[k]) for k in ("r", "d", "v1"))
    with pytest.raises(ValueError, match="at least 1"):
        returns.n_step_returns(r, d, v, 0)
    close(returns.n_step_returns(r, d, v, 50), returns.discounted_returns(r, d, v))
    close(returns.n_step_returns(r, d, v, 1), r + d * v)


def hand(values, dtype=jnp.float32):
    return jnp.asarray(values, dtype)


def test_truncation_bootstraps_and_termination_does_not():
    # Two episodes of two steps, gamma 1/2; the first ends in a state of value 8.
    r, v0 = hand([1, 2, 4, 8]), hand([1, 1, 1, 1])
    v1, reset = hand([1, 8, 1, 8]), hand([0, 1, 0, 1], bool)
    truncated, terminated = hand([0.5, 0.5, 0.5, 0.5]), hand([0.5, 0, 0.5, 0])
    cut = returns.discounted_returns(r, truncated, v1, reset)
    np.testing.assert_array_equal(cut, [1 + (2 + 4) / 2, 2 + 4, 4 + (8 + 4) / 2, 8 + 4])
    over = returns.discounted_returns(r, terminated, v1, reset)
    np.testing.assert_array_equal(over, [1 + 2 / 2, 2, 4 + 8 / 2, 8])
    # A discount of zero needs no reset.
    np.testing.assert_array_equal(returns.discounted_returns(r, terminated, v1), over)
    gae = returns.generalized_advantages(r, truncated, 1.0, v0, v1, reset)
    np.testing.assert_array_equal(gae, cut - 1)
    gae = returns.generalized_advantages(r, terminated, 1.0, v0, v1, reset)
    np.testing.assert_array_equal(gae, over - 1)
    for n in (2, 3):
        result = returns.n_step_returns(r, truncated, v1, n, reset)
        np.testing.assert_array_equal(result, cut)
    one = jnp.ones(4)
    np.testing.assert_array_equal(
        returns.vtrace(v0, v1, r, truncated, one, reset_t=reset).targets, cut
    )
    on_policy = returns.retrace(jnp.zeros(4), v1, r, truncated, 0 * one, reset_t=reset)
    np.testing.assert_array_equal(on_policy, r + truncated * v1)


def test_rewards_of_another_episode_do_not_count():
    r, reset = hand([1, 2, 4, 8]), hand([0, 1, 0, 0], bool)
    np.testing.assert_array_equal(returns.reward_to_go(r, reset), [3, 2, 12, 8])


def test_infinite_ratios_past_an_end_are_not_read():
    one, reset = jnp.ones(3), hand([0, 1, 0], bool)
    rho, q = hand([1, np.inf, np.nan]), hand([1, np.nan, np.nan])
    assert jnp.isfinite(returns.retrace(q, one, one, one, rho, reset_t=reset)).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_limits_of_lambda(seed):
    x = {k: jnp.asarray(v) for k, v in sequences(seed).items()}
    r, d, v0, v1, reset = (x[k] for k in ("r", "d", "v0", "v1", "reset"))
    gae = lambda lam: JITTED["generalized_advantages"](  # noqa: E731
        r, d, jnp.full((T, B), lam), v0, v1, reset, None
    )
    monte_carlo = returns.discounted_returns(r, d, v1, reset)
    close(gae(0.0), r + d * v1 - v0, atol=1e-5)
    # The sum telescopes only where v1 is the value that the next row starts from.
    chained = jnp.concatenate([v0[1:], v1[-1:]])
    v1 = jnp.where(reset, v1, chained)
    close(gae(1.0), monte_carlo - v0, atol=1e-4)
    close(gae(0.7), returns.lambda_returns(r, d, v1, 0.7, reset) - v0, atol=1e-4)
    vtrace = returns.vtrace(v0, v1, r, d, jnp.ones_like(r), 0.7, reset_t=reset)
    close(vtrace.errors, gae(0.7), atol=1e-4)
    close(vtrace.pg_advantages, gae(0.7), atol=1e-4)


def test_gae_is_the_truncated_sum_of_algorithm_5():
    rng = np.random.default_rng(10)
    r, values = rng.normal(size=T), rng.normal(size=T + 1)
    gamma, lam = 0.9, 0.8
    delta = r + gamma * values[1:] - values[:-1]
    expected = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, T)) for t in range(T)]
    args = (hand(r), jnp.full(T, gamma), lam, hand(values[:-1]), hand(values[1:]))
    close(returns.generalized_advantages(*args), np.array(expected))


def test_hyper_parameters_are_traced_and_vmapped():
    x = {k: jnp.asarray(v) for k, v in sequences(11).items()}
    f = lambda lam: returns.generalized_advantages(  # noqa: E731
        x["r"], x["d"], lam, x["v0"], x["v1"], x["reset"]
    )
    stacked = jax.jit(jax.vmap(f))(jnp.array([0.0, 0.5, 1.0]))
    for lam, row in zip([0.0, 0.5, 1.0], stacked, strict=True):
        close(row, f(lam))
    clips = jnp.array([0.5, jnp.inf])
    f = lambda c: returns.vtrace(  # noqa: E731
        x["v0"], x["v1"], x["r"], x["d"], x["rho"], 0.9, c, c, c, x["reset"]
    )
    stacked = jax.vmap(f)(clips)
    close(jax.tree.map(lambda y: y[1], stacked), f(float("inf")))
    assert jnp.isfinite(stacked.errors).all()


@pytest.mark.parametrize("case", ["discounted_returns", "lambda_returns", "n_step", "per_step"])
def test_rlax_returns(case):
    name = "lambda_returns" if case == "per_step" else case.replace("n_step", "n_step_returns")
    files = {"n_step": [f"n_step_{n}" for n in (1, 2, 4, 9)], "per_step": [f"{name}_per_step"]}
    for file in files.get(case, [case]):
        inputs, outputs = golden("rlax", file)
        inputs = {k: int(v) if k == "n" else jnp.asarray(v) for k, v in inputs.items()}
        close(getattr(returns, name)(**inputs), outputs["out"])


def test_rlax_gae():
    inputs, outputs = golden("rlax", "gae")
    values = jnp.asarray(inputs.pop("values"))
    inputs = {k: jnp.asarray(v) for k, v in inputs.items()}
    close(
        returns.generalized_advantages(**inputs, v_tm1=values[:-1], v_t=values[1:]), outputs["out"]
    )


@pytest.mark.parametrize("case", RLAX_VTRACE)
def test_rlax_vtrace(case):
    inputs, outputs = golden("rlax", case)
    names = {"clip_rho_threshold": "clip_rho", "clip_pg_rho_threshold": "clip_pg_rho"}
    names["sample_mask"] = "mask_t"
    result = returns.vtrace(**{names.get(k, k): jnp.asarray(v) for k, v in inputs.items()})
    close(result.errors, outputs.get("errors", outputs.get("out")), atol=1e-5)
    if "pg_advantage" in outputs:
        close(result.pg_advantages, outputs["pg_advantage"], atol=1e-5)


def test_rlax_retrace():
    x, outputs = golden("rlax", "retrace")
    pick = lambda table, a: jnp.asarray(np.take_along_axis(table, a[..., None], -1)[..., 0])  # noqa: E731
    target = returns.retrace(
        pick(x["q_t"], x["a_t"]),
        jnp.asarray((x["q_t"] * x["pi_t"]).sum(-1)),
        jnp.asarray(x["r_t"]),
        jnp.asarray(x["discount_t"]),
        pick(x["pi_t"], x["a_t"]) / jnp.asarray(x["mu_t"]),
        float(x["lambda_"]),
    )
    close(target - pick(x["q_tm1"], x["a_tm1"]), outputs["out"], atol=1e-5)


def test_rlax_off_policy_returns():
    x, outputs = golden("rlax", "off_policy_returns")
    pad = lambda y: jnp.concatenate([jnp.asarray(y), jnp.full_like(y[:1], jnp.nan)])  # noqa: E731
    r, d, v = (jnp.asarray(x[k]) for k in ("r_t", "discount_t", "v_t"))
    close(returns.retrace(pad(x["q_t"]), v, r, d, pad(x["c_t"])), outputs["out"], atol=1e-5)
