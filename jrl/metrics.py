"""Running statistics that merge, and means kept as (sum, weight) until the last moment."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from jrl import tree
from jrl.types import Array, Leaf, Metrics, PyTree, Scalar

__all__ = ["RunningStatistics", "join", "mean", "merge", "normalize", "total", "update"]


class RunningStatistics(struct.PyTreeNode):
    """Count, mean and sum of squared deviations of everything seen, one mean per component."""

    count: Leaf
    mean: Leaf
    m2: Leaf

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = ()) -> "RunningStatistics":
        """Nothing seen yet."""
        return cls(jnp.float32(0), jnp.zeros(shape), jnp.zeros(shape))

    @property
    def variance(self) -> Array:
        """The population variance; 1 until two values were seen."""
        return jnp.where(self.count > 1, self.m2 / jnp.maximum(self.count, 1), 1.0)


def update(statistics: RunningStatistics, values: Array) -> RunningStatistics:
    """Adds `values[..., *shape]`; every leading axis is an axis of examples.

    Values among which one is not finite are left out together: statistics never forget a NaN.

    >>> update(RunningStatistics.zeros(), jnp.array([1.0, 3.0])).mean
    Array(2., dtype=float32)
    """
    axes = tuple(range(values.ndim - statistics.mean.ndim))
    mean = jnp.mean(values, axes)
    m2 = jnp.sum((values - jnp.expand_dims(mean, axes)) ** 2, axes)
    count = jnp.float32(values.size // max(mean.size, 1))
    merged = merge(statistics, RunningStatistics(count, mean, m2))
    finite = jnp.all(jnp.isfinite(merged.mean) & jnp.isfinite(merged.m2))
    return tree.select(finite, merged, statistics)


def merge(a: RunningStatistics, b: RunningStatistics) -> RunningStatistics:
    """Joins two disjoint samples, in either order, for example from two devices.

        delta = mean_b - mean_a,  mean = mean_a + delta n_b / n,
        m2 = m2_a + m2_b + delta^2 n_a n_b / n

    Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for
    computing sample variances", eq. 1.5, http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1)
    delta = b.mean - a.mean
    return RunningStatistics(
        count, a.mean + delta * share, a.m2 + b.m2 + delta**2 * a.count * share
    )


def normalize(
    statistics: RunningStatistics, values: Array, clip: Scalar = 10.0, floor: Scalar = 1e-8
) -> Array:
    """Shifts and scales `values[..., *shape]` to mean 0 and variance 1, within +-`clip`.

    A variance below `floor` counts as `floor`.
    """
    axes = tuple(range(values.ndim - statistics.mean.ndim))
    centred = values - jnp.expand_dims(statistics.mean, axes)
    scale = jax.lax.rsqrt(jnp.maximum(statistics.variance, floor))
    return jnp.clip(centred * jnp.expand_dims(scale, axes), -clip, clip)


def total(metrics: Metrics, axis: int | tuple[int, ...] = 0) -> Metrics:
    """Sums both halves of every (sum, weight) over `axis`."""
    return jax.tree.map(lambda x: jnp.sum(x, axis), metrics)


def mean(metrics: Metrics) -> dict[str, PyTree]:
    """Divides every sum by its weight; NaN where nothing was counted."""
    return {name: jnp.asarray(s) / jnp.asarray(w) for name, (s, w) in metrics.items()}


def join(several: Sequence[Metrics]) -> Metrics:
    """Adds up dicts of metrics that need not have the same names.

    >>> join([{"a": (1.0, 2.0)}, {"a": (3.0, 2.0), "b": (1.0, 1.0)}])
    {'a': (4.0, 4.0), 'b': (1.0, 1.0)}
    """
    names = dict.fromkeys(name for metrics in several for name in metrics)
    parts = {name: [metrics[name] for metrics in several if name in metrics] for name in names}
    return {name: (sum(x[0] for x in xs), sum(x[1] for x in xs)) for name, xs in parts.items()}
