"""Filters against sorted loops in NumPy and transformers' processors; what is drawn, how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl.lm import sampling

CASES = {
    # temperature, top-k, top-p, min-p
    "none": (1.0, 0, 1.0, 0.0),
    "temperature": (0.7, 0, 1.0, 0.0),
    "top-k": (1.0, 5, 1.0, 0.0),
    "top-k of 1": (1.0, 1, 1.0, 0.0),
    "top-k of all": (1.3, 300, 1.0, 0.0),
    "top-p": (1.0, 0, 0.8, 0.0),
    "top-p of almost nothing": (1.0, 0, 1e-6, 0.0),
    "min-p": (1.5, 0, 1.0, 0.1),
    "min-p of 1": (1.0, 0, 1.0, 1.0),
    "top-k, top-p": (0.8, 20, 0.7, 0.0),
    "all": (1.6, 40, 0.9, 0.05),
}


@pytest.fixture(scope="module")
def logits():
    """Logits of a row for every case, over more tokens than one block and not whole blocks."""
    return np.random.default_rng(0).normal(0, 2.5, (len(CASES), 300)).astype(np.float32)


def columns(cases):
    temperature, top_k, top_p, min_p = (np.array(x) for x in zip(*cases, strict=True))
    return (
        jnp.float32(temperature),
        jnp.int32(top_k),
        jnp.float32(top_p),
        jnp.float32(min_p),
    )


def reference(logits, temperature, top_k, top_p, min_p):
    """One token at a time, from the most probable one down, in float64."""
    z = logits.astype(np.float64) / temperature
    order = sorted(range(len(z)), key=lambda v: -z[v])
    if top_k:
        order = order[:top_k]
    p = np.exp(z - z.max())
    mass, total, kept = 0.0, sum(p[v] for v in order), []
    for v in order:
        if mass >= top_p * total and top_p < 1:
            break
        kept.append(v)
        mass += p[v]
    kept = [v for v in kept if p[v] >= min_p * p[order[0]]]
    q = np.zeros_like(p)
    q[kept] = p[kept]
    return q / q.sum()


def distributions(logits, cases):
    """What our thresholds keep, renormalised."""
    temperature, *filters = columns(cases)
    z = logits / np.asarray(temperature)[:, None]
    least = np.asarray(jax.jit(sampling.thresholds)(z, *filters))
    p = np.where(z >= least[:, None], np.exp(z - z.max(-1, keepdims=True)), 0.0)
    return p / p.sum(-1, keepdims=True)


def test_filters_are_those_of_a_sorted_loop(logits):
    ours = distributions(logits, CASES.values())
    for row, (name, case) in enumerate(CASES.items()):
        expected = reference(logits[row], *case)
        np.testing.assert_array_equal(ours[row] > 0, expected > 0, err_msg=name)
        np.testing.assert_allclose(ours[row], expected, rtol=2e-5, err_msg=name)


def test_filters_are_those_of_transformers(logits):
    import torch
    from transformers.generation import logits_process as theirs

    ours = distributions(logits, CASES.values())
    for row, (name, (temperature, top_k, top_p, min_p)) in enumerate(CASES.items()):
        z = torch.from_numpy(logits[row : row + 1])
        processors = [theirs.TemperatureLogitsWarper(temperature)]
        processors += [theirs.TopKLogitsWarper(top_k)] if top_k else []
        processors += [theirs.TopPLogitsWarper(top_p)] if top_p < 1 else []
        processors += [theirs.MinPLogitsWarper(min_p)] if 0 < min_p < 1 else []
        processors += [theirs.TopKLogitsWarper(1)] if min_p == 1 else []
        for processor in processors:
            z = processor(None, z)
        expected = torch.softmax(z, -1)[0].numpy()
        np.testing.assert_allclose(ours[row], expected, rtol=2e-5, atol=1e-9, err_msg=name)


def test_the_order_of_filters_matters():
    # Top-k first: 0.5 / 0.75 reaches 0.6 alone; top-p first would keep two.
    z = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], np.float32))
    assert (distributions(z, [(1.0, 2, 0.6, 0.0)]) > 0).tolist() == [[True, False, False, False]]
    # The temperature first: at 1 the second token has half of the largest, at 2 more.
    assert (distributions(z, [(1.0, 0, 1.0, 0.6)]) > 0).sum() == 1
    assert (distributions(z, [(2.0, 0, 1.0, 0.6)]) > 0).sum() == 2


def test_equal_logits_stay_together():
    z = np.array([[1.0, 0.0, 0.0, 0.0, -1.0]], np.float32)
    assert (distributions(z, [(1.0, 2, 1.0, 0.0)]) > 0).sum() == 4
    assert (distributions(z * 0, [(1.0, 3, 0.1, 1.0)]) > 0).all()


def test_negative_zero_huge_and_tiny_logits():
    z = np.array([[-0.0, 0.0, -1e30, 1e-38, -50.0]], np.float32)
    assert (distributions(z, [(1.0, 3, 1.0, 0.0)]) > 0).tolist() == [
        [True, True, False, True, False]
    ]


def draw(logits, cases, draws):
    keys = jax.random.split(jax.random.key(3), (draws, len(logits)))
    call = jax.jit(jax.vmap(sampling.draw, (0, None, None, None, None, None)))
    return jax.tree.map(np.asarray, call(keys, logits, *columns(cases)))


def test_tokens_are_drawn_as_often_as_they_should(logits):
    draws = 20_000
    found = draw(logits, CASES.values(), draws)
    for row, (name, case) in enumerate(CASES.items()):
        q = reference(logits[row], *case)
        counts = np.bincount(found.tokens_B[:, row], minlength=len(q))
        assert not counts[q == 0].any(), name
        # Rare tokens together, so that every cell expects at least ten.
        often = q * draws >= 10
        expected = np.append(q[often], q[~often].sum()) * draws
        cells = np.append(counts[often], counts[~often].sum())
        chi2 = ((cells - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
        freedom = max((expected > 0).sum() - 1, 1)
        assert chi2 < freedom + 5 * np.sqrt(2 * freedom), (name, chi2, freedom)


def test_log_probs_are_those_of_the_distributions(logits):
    found = draw(logits, CASES.values(), 50)
    for row, case in enumerate(CASES.values()):
        tokens = found.tokens_B[:, row]
        pairs = (
            (found.log_probs_B, case),
            (found.tempered_log_probs_B, (case[0], 0, 1.0, 0.0)),
            (found.raw_log_probs_B, (1.0, 0, 1.0, 0.0)),
        )
        for ours, settings in pairs:
            expected = np.log(reference(logits[row], *settings)[tokens])
            np.testing.assert_allclose(ours[:, row], expected, atol=2e-5)


def test_temperature_zero_takes_the_first_of_the_largest(logits):
    logits = logits.copy()
    logits[:, [7, 200]] = 30.0
    found = draw(logits, [(0.0, *case[1:]) for case in CASES.values()], 3)
    assert (found.tokens_B == 7).all()
    assert (found.log_probs_B == 0).all() and (found.tempered_log_probs_B == 0).all()
    np.testing.assert_allclose(found.raw_log_probs_B, np.log(0.5), atol=1e-5)


def test_rows_do_not_see_each_other(logits):
    cases = list(CASES.values())
    together = draw(logits, cases, 5)
    keys = jax.random.split(jax.random.key(3), (5, len(logits)))
    row = list(CASES).index("all")
    one = jax.jit(sampling.draw)(
        keys[2, row : row + 1], logits[row : row + 1], *columns(cases[row : row + 1])
    )
    for ours, alone in zip(together, one, strict=True):
        np.testing.assert_allclose(ours[2, row], alone[0], atol=1e-6)


def test_nothing_is_sorted(logits):
    text = jax.jit(sampling.draw).lower(
        jax.random.split(jax.random.key(0), len(CASES)), logits, *columns(CASES.values())
    )
    assert "stablehlo.sort" not in text.as_text()
