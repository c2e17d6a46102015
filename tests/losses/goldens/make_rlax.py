"""Writes `rlax.json`: what rlax returns on small random inputs.

    python3.11 -m venv /tmp/rlaxenv && /tmp/rlaxenv/bin/pip install rlax==0.1.9
    /tmp/rlaxenv/bin/python tests/losses/goldens/make_rlax.py

rlax is no dependency of jrl: run this in a throw-away environment. The file holds
`{"versions": ..., "cases": {name: {"inputs": {...}, "outputs": {...}}}}`. Sequences are
time-major `[T, B]` (T=6, B=3); other arrays have the batch first (B=5, A=4 actions, 7 atoms).
Every floating number stays one when read back; masks are booleans and actions integers.
rlax's functions of one example are vmapped over the batch. Most return a temporal-difference
*error* (target minus prediction), not a loss.
"""

import json
import pathlib
import platform

import numpy as np

T, B = 6, 3
N, A, ATOMS = 5, 4, 7
GAMMA = 0.9


def sequences(rng):
    """Draws a batch of sequences, some of which terminate on the way."""
    terminated = rng.random((T, B)) < 0.2
    pi, mu = (softmax(rng.normal(size=(T, B, A))) for _ in range(2))
    return {
        "r_t": rng.normal(size=(T, B)),
        "discount_t": GAMMA * (1.0 - terminated),
        "values": rng.normal(size=(T + 1, B)),
        "rho_tm1": np.exp(0.5 * rng.normal(size=(T, B))),
        "q_tm1": rng.normal(size=(T, B, A)),
        "q_t": rng.normal(size=(T, B, A)),
        "a_tm1": rng.integers(A, size=(T, B)),
        "a_t": rng.integers(A, size=(T, B)),
        "pi_t": pi,
        "mu_t": mu,
    }


def transitions(rng):
    """Draws a batch of single transitions."""
    return {
        "v_tm1": rng.normal(size=N),
        "v_t": rng.normal(size=N),
        "q_tm1": rng.normal(size=(N, A)),
        "q_t": rng.normal(size=(N, A)),
        "q_t_selector": rng.normal(size=(N, A)),
        "a_tm1": rng.integers(A, size=N),
        "a_t": rng.integers(A, size=N),
        "r_t": rng.normal(size=N),
        "discount_t": GAMMA * np.array([1.0, 1.0, 0.0, 1.0, 0.0]),
        "probs_a_t": softmax(rng.normal(size=(N, A))),
        "atoms": np.linspace(-2.0, 2.0, ATOMS),
        "v_logits_tm1": rng.normal(size=(N, ATOMS)),
        "v_logits_t": rng.normal(size=(N, ATOMS)),
        "q_logits_tm1": rng.normal(size=(N, A, ATOMS)),
        "q_logits_t": rng.normal(size=(N, A, ATOMS)),
        "target_atoms": rng.normal(size=(N, ATOMS)) * 1.5,
        "probs": softmax(rng.normal(size=(N, ATOMS))),
        "quantiles_tm1": rng.normal(size=(N, ATOMS)),
        "quantiles_t": rng.normal(size=(N, ATOMS)),
        "tau": np.tile((np.arange(ATOMS) + 0.5) / ATOMS, (N, 1)),
        "dist_q_tm1": rng.normal(size=(N, ATOMS, A)),
        "dist_q_t": rng.normal(size=(N, ATOMS, A)),
        "dist_q_t_selector": rng.normal(size=(N, ATOMS, A)),
    }


def softmax(x):
    """Returns probabilities."""
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def as_written(x):
    """Rounds as the JSON will hold it, so that rlax sees the very numbers that the test reads."""
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.floating):
        return np.round(x, 5).astype(np.float32)
    return x if x.dtype == bool else x.astype(np.int32)


def as_json(x):
    """Turns an array into nested lists of Python numbers."""
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.floating):
        assert np.isfinite(x).all()
        return np.vectorize(lambda v: float(f"{v:.9g}"), otypes=[object])(x).tolist()
    return x.tolist()


def main():
    """Computes every case and writes the file."""
    import jax
    import jax.numpy as jnp
    import rlax

    rng = np.random.default_rng(20250725)
    seq = {k: as_written(v) for k, v in sequences(rng).items()}
    one = {k: as_written(v) for k, v in transitions(rng).items()}
    ratio = as_written(np.exp(0.4 * rng.normal(size=(T, B))))
    adv = as_written(rng.normal(size=(T, B)))
    logits = as_written(rng.normal(size=(T, A)))
    v_tm1, v_t = seq["values"][:-1], seq["values"][1:]
    r_t, discount_t = seq["r_t"], seq["discount_t"]
    lambda_t = as_written(rng.random((T, B)))
    mask = np.ones((T, B), bool)
    mask[4:, 1] = mask[2:, 2] = False
    cases = {}

    def add(name, f, inputs, axis, consts=None, out="out"):
        inputs = {k: as_written(v) for k, v in inputs.items()}
        consts = consts or {}
        result = jax.vmap(lambda kw: f(**kw, **consts), axis, axis)(inputs)
        outputs = {out: result}
        if hasattr(result, "_asdict"):
            outputs = result._asdict()
        elif isinstance(result, tuple):
            outputs = dict(zip(out, result, strict=True))
        cases[name] = {
            "inputs": {k: as_json(v) for k, v in inputs.items()}
            | {k: as_json(np.asarray(v)) for k, v in consts.items() if not isinstance(v, bool)},
            "outputs": {k: as_json(v) for k, v in outputs.items()},
        }

    def pick(source, *names):
        return {k: source[k] for k in names}

    # Sequences.
    returns = {"r_t": r_t, "discount_t": discount_t, "v_t": v_t}
    add("discounted_returns", rlax.discounted_returns, returns, 1)
    add("lambda_returns", rlax.lambda_returns, returns, 1, {"lambda_": 0.8})
    add("lambda_returns_per_step", rlax.lambda_returns, returns | {"lambda_": lambda_t}, 1)
    for n in (1, 2, 4, 9):
        add(f"n_step_{n}", rlax.n_step_bootstrapped_returns, returns, 1, {"n": n})
    gae = {"r_t": r_t, "discount_t": discount_t, "values": seq["values"]}
    add("gae", rlax.truncated_generalized_advantage_estimation, gae, 1, {"lambda_": 0.95})
    vtrace = {"v_tm1": v_tm1, "v_t": v_t, "r_t": r_t, "discount_t": discount_t} | {
        "rho_tm1": seq["rho_tm1"]
    }
    add("vtrace", rlax.vtrace, vtrace, 1, {"lambda_": 0.9, "clip_rho_threshold": 1.2})
    thresholds = {"lambda_": 0.9, "clip_rho_threshold": 1.3, "clip_pg_rho_threshold": 1.1}
    add("vtrace_td_error_and_advantage", rlax.vtrace_td_error_and_advantage, vtrace, 1, thresholds)
    add("vtrace_impala", rlax.vtrace_td_error_and_advantage, vtrace, 1)
    add(
        "vtrace_masked",
        lambda sample_mask, **kw: rlax.vtrace(**kw, sample_mask=sample_mask),
        vtrace | {"sample_mask": mask},
        1,
    )
    retrace = pick(seq, "q_tm1", "q_t", "a_tm1", "a_t", "r_t", "discount_t", "pi_t")
    retrace["mu_t"] = np.take_along_axis(seq["mu_t"], seq["a_t"][..., None], -1)[..., 0]
    add("retrace", rlax.retrace, retrace, 1, {"lambda_": 0.9})
    log_rhos = np.log(seq["rho_tm1"][1:])
    add(
        "off_policy_returns",
        lambda **kw: rlax.general_off_policy_returns_from_q_and_v(**kw),
        {
            "q_t": seq["q_t"][:-1, :, 0],
            "v_t": v_t,
            "r_t": r_t,
            "discount_t": discount_t,
            "c_t": 0.9 * np.minimum(1.0, np.exp(log_rhos)),
        },
        1,
    )
    add("td_lambda", rlax.td_lambda, {"v_tm1": v_tm1} | returns, 1, {"lambda_": 0.8})
    qs = pick(seq, "q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "a_t")
    add("sarsa_lambda", rlax.sarsa_lambda, qs, 1, {"lambda_": 0.8})
    del qs["a_t"]
    add("q_lambda", rlax.q_lambda, qs, 1, {"lambda_": 0.8})

    # Transitions: TD errors.
    step = pick(one, "r_t", "discount_t")
    add("td_learning", rlax.td_learning, pick(one, "v_tm1", "v_t") | step, 0)
    q = pick(one, "q_tm1", "a_tm1", "q_t") | step
    add("q_learning", rlax.q_learning, q, 0)
    add("sarsa", rlax.sarsa, q | pick(one, "a_t"), 0)
    add("expected_sarsa", rlax.expected_sarsa, q | pick(one, "probs_a_t"), 0)
    double = pick(one, "q_tm1", "a_tm1", "q_t_selector") | {"q_t_value": one["q_t"]} | step
    add("double_q_learning", rlax.double_q_learning, double, 0)
    add("persistent_q_learning", rlax.persistent_q_learning, q, 0, {"action_gap_scale": 0.9})
    add("qv_learning", rlax.qv_learning, pick(one, "q_tm1", "a_tm1", "v_t") | step, 0)
    add("qv_max", rlax.qv_max, pick(one, "v_tm1", "q_t") | step, 0)

    # Distributions.
    atoms = np.tile(one["atoms"], (N, 1))
    add(
        "categorical_l2_project",
        rlax.categorical_l2_project,
        {"z_p": np.sort(one["target_atoms"]), "probs": one["probs"], "z_q": atoms},
        0,
    )
    add(
        "categorical_td_learning",
        rlax.categorical_td_learning,
        {
            "v_atoms_tm1": atoms,
            "v_logits_tm1": one["v_logits_tm1"],
            "v_atoms_t": atoms,
            "v_logits_t": one["v_logits_t"],
        }
        | step,
        0,
    )
    categorical = {"q_atoms_tm1": atoms, "q_atoms_t": atoms} | step
    categorical |= pick(one, "q_logits_tm1", "q_logits_t", "a_tm1")
    add("categorical_q_learning", rlax.categorical_q_learning, categorical, 0)
    add(
        "categorical_double_q_learning",
        rlax.categorical_double_q_learning,
        categorical | pick(one, "q_t_selector"),
        0,
    )
    quantiles = {"dist_src": one["quantiles_tm1"], "tau_src": one["tau"]}
    quantiles["dist_target"] = one["quantiles_t"]
    for huber in (0.0, 1.0, 0.5):
        add(
            f"quantile_regression_huber_{huber}",
            rlax.quantile_regression_loss,
            quantiles,
            0,
            {"huber_param": huber},
        )
    dist = pick(one, "dist_q_tm1", "a_tm1", "dist_q_t") | {"tau_q_tm1": one["tau"]} | step
    add(
        "quantile_q_learning",
        rlax.quantile_q_learning,
        dist | pick(one, "dist_q_t_selector"),
        0,
        {"huber_param": 1.0},
    )
    add(
        "quantile_expected_sarsa",
        rlax.quantile_expected_sarsa,
        dist | pick(one, "probs_a_t"),
        0,
        {"huber_param": 1.0},
    )
    errors = {"x": one["quantiles_tm1"] * 2.0}
    add("huber_loss", rlax.huber_loss, errors, 0, {"delta": 0.75})
    add(
        "expectile_loss",
        rlax.expectile_loss,
        {"predictions": one["quantiles_tm1"], "targets": one["quantiles_t"]},
        0,
        {"expectile": 0.7},
    )
    values = {"x": 30.0 * one["quantiles_tm1"]}
    add("signed_hyperbolic", rlax.signed_hyperbolic, values, 0)
    add("signed_parabolic", rlax.signed_parabolic, {"x": 3.0 * one["quantiles_tm1"]}, 0)
    inside = {"scalar": np.clip(one["v_tm1"], -1.9, 1.9)}
    bins = {"min_value": -2.0, "max_value": 2.0, "num_bins": ATOMS}
    add("transform_to_2hot", rlax.transform_to_2hot, inside, 0, bins)

    # Policy gradients. rlax averages over time: a time axis of length one gives the elements.
    def clipped(prob_ratios_t, adv_t, epsilon):
        return jax.vmap(lambda r, a: rlax.clipped_surrogate_pg_loss(r[None], a[None], epsilon))(
            prob_ratios_t, adv_t
        )

    def clipped_gradient(prob_ratios_t, adv_t, epsilon):
        return jax.grad(lambda r: clipped(r, adv_t, epsilon).sum())(prob_ratios_t)

    pg = {"prob_ratios_t": ratio, "adv_t": adv}
    for epsilon in (0.1, 0.2):
        add(
            f"clipped_surrogate_{epsilon}",
            lambda epsilon, **kw: (
                clipped(epsilon=epsilon, **kw),
                clipped_gradient(epsilon=epsilon, **kw),
            ),
            pg,
            1,
            {"epsilon": epsilon},
            out=("out", "gradient"),
        )

    def reinforce(logits_t, a_t, adv_t, w_t):
        f = lambda l: rlax.policy_gradient_loss(l[None], a_t[None], adv_t[None], w_t[None])  # noqa: E731, E741
        return f(logits_t), jax.grad(f)(logits_t)

    a_t = as_written(rng.integers(A, size=T))
    add(
        "policy_gradient_loss",
        reinforce,
        {"logits_t": logits, "a_t": a_t, "adv_t": adv[:, 0], "w_t": np.ones(T, np.float32)},
        0,
        out=("out", "gradient"),
    )
    add(
        "entropy_loss",
        lambda logits_t: rlax.entropy_loss(logits_t[None], jnp.ones(1)),
        {"logits_t": logits},
        0,
    )

    def dpg(a_t, dqda_t):
        return rlax.dpg_loss(a_t, dqda_t), jax.grad(lambda a: rlax.dpg_loss(a, dqda_t).sum())(a_t)

    add("dpg_loss", dpg, {"a_t": one["q_tm1"], "dqda_t": one["q_t"]}, 0, out=("out", "gradient"))

    versions = {m.__name__: m.__version__ for m in (rlax, jax, np)}
    versions["python"] = platform.python_version()
    path = pathlib.Path(__file__).parent / "rlax.json"
    lines = ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in cases.items())
    path.write_text(f'{{"versions": {json.dumps(versions)}, "cases": {{\n{lines}\n}}}}\n')
    print(f"{len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
