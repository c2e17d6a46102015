"""Running statistics against NumPy, whole and in parts; means of (sum, weight)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrl import metrics

DATA = np.random.default_rng(0).normal(3.0, 2.0, (40, 5, 3)).astype(np.float32)


def check(statistics, data, rtol=1e-5):
    flat = np.float64(data).reshape(-1, *np.shape(statistics.mean))
    assert float(statistics.count) == len(flat)
    np.testing.assert_allclose(statistics.mean, flat.mean(0), rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(statistics.variance, flat.var(0), rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (5, 3)])
def test_update_equals_numpy(shape):
    update = jax.jit(metrics.update)
    statistics = metrics.RunningStatistics.zeros(shape)
    for i in range(0, 40, 8):
        statistics = update(statistics, jnp.asarray(DATA[i : i + 8]))
        check(statistics, DATA[: i + 8])


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 39), min_size=1, max_size=4, unique=True), seed=st.integers(0))
def test_statistics_of_parts_merge_to_those_of_the_whole(cuts, seed):
    zeros = metrics.RunningStatistics.zeros((3,))
    parts = [metrics.update(zeros, jnp.asarray(x)) for x in np.split(DATA, sorted(cuts))]
    np.random.default_rng(seed).shuffle(parts)
    whole = zeros
    for part in parts:
        whole = metrics.merge(whole, part)
    check(whole, DATA)


def test_statistics_of_eight_devices_merge():
    zeros = metrics.RunningStatistics.zeros((3,))
    parts = jax.pmap(lambda x: metrics.update(zeros, x))(DATA.reshape(8, 5, 5, 3))
    whole = zeros
    for i in range(8):
        whole = metrics.merge(whole, jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), parts))
    check(whole, DATA)


def test_a_large_mean_does_not_swallow_the_variance():
    data = np.float32(np.random.default_rng(1).normal(1e4, 1.0, 4096))
    statistics = metrics.RunningStatistics.zeros()
    for part in np.split(data, 64):
        statistics = metrics.update(statistics, jnp.asarray(part))
    np.testing.assert_allclose(statistics.variance, np.float64(data).var(), rtol=1e-2)


def test_variance_of_too_few_is_one():
    statistics = metrics.RunningStatistics.zeros((2,))
    assert statistics.variance.tolist() == [1.0, 1.0]
    assert metrics.update(statistics, jnp.ones((1, 2))).variance.tolist() == [1.0, 1.0]


def test_normalize_equals_numpy():
    statistics = metrics.update(metrics.RunningStatistics.zeros((3,)), jnp.asarray(DATA))
    flat = DATA.reshape(-1, 3)
    expected = (DATA - flat.mean(0)) / flat.std(0)
    normalized = metrics.normalize(statistics, jnp.asarray(DATA))
    np.testing.assert_allclose(normalized, expected, rtol=1e-4, atol=1e-4)
    clipped = metrics.normalize(statistics, jnp.asarray(DATA), clip=0.5)
    np.testing.assert_allclose(clipped, np.clip(expected, -0.5, 0.5), rtol=1e-4, atol=1e-4)


def test_total_and_mean():
    sums = {"a": (jnp.ones((4, 2)), jnp.full((4, 2), 2.0)), "b": (jnp.zeros(4), jnp.zeros(4))}
    totals = metrics.total(sums)
    assert totals["a"][0].tolist() == [4.0, 4.0]
    means = metrics.mean(totals)
    assert means["a"].tolist() == [0.5, 0.5] and bool(jnp.isnan(means["b"]))


def test_a_value_that_is_not_finite_is_forgotten():
    statistics = metrics.update(metrics.RunningStatistics.zeros(), jnp.array([1.0, 3.0]))
    after = metrics.update(statistics, jnp.array([jnp.nan, 1.0]))
    assert after.mean == 2 and after.count == 2


def test_a_small_variance_counts_as_the_floor():
    statistics = metrics.update(metrics.RunningStatistics.zeros(), jnp.array([1.0, 1.0]))
    assert metrics.normalize(statistics, jnp.float32(1.5), 5.0, 0.01) == pytest.approx(5.0)
    assert metrics.normalize(statistics, jnp.float32(1.2), 5.0, 0.01) == pytest.approx(
        2.0, rel=1e-5
    )
