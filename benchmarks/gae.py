"""Which way to compute generalised advantages is fastest: scan, unrolled, associative, NumPy?

A_t = delta_t + gamma lambda (1 - reset_t) A_{t+1} is a linear recurrence. A reverse `lax.scan` of
it (what `jrl.losses.returns.generalized_advantages` does) takes T steps over the batch; unrolled by
16 it has fewer trips with larger bodies; `lax.associative_scan` takes log2 T passes over the whole
array, which pays where there is more parallel hardware than batch.

    python -m benchmarks.gae [--quick] [--repeats 15]
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, in_turn, quiet_share, save, show, summary
from jrl.losses.returns import generalized_advantages

SHAPES = ((128, 2048), (1024, 16))
LAMBDA = 0.95


@dataclasses.dataclass
class Advantages(Options):
    """Options of this benchmark."""

    repeats: int = 15
    """Timed runs of every row; the median is compared."""


def data(shape: tuple[int, int]):
    """Rewards, discounts, values, values of the next observations and ends of episodes."""
    keys = jax.random.split(jax.random.key(0), 4)
    r_t, v_tm1, v_t = (jax.random.normal(key, shape) for key in keys[:3])
    reset_t = jax.random.uniform(keys[3], shape) < 0.05
    return r_t, 0.99 * (1.0 - reset_t), v_tm1, v_t, reset_t


def ours(r_t, discount_t, v_tm1, v_t, reset_t):
    """The library's function."""
    return generalized_advantages(r_t, discount_t, LAMBDA, v_tm1, v_t, reset_t)


def _parts(r_t, discount_t, v_tm1, v_t, reset_t):
    return r_t + discount_t * v_t - v_tm1, discount_t * LAMBDA * (1.0 - reset_t)


def unrolled(*arrays, unroll: int = 16):
    """The same scan with sixteen steps in a body."""
    parts = _parts(*arrays)

    def body(x, row):
        x = row[0] + row[1] * x
        return x, x

    start = jnp.zeros_like(parts[0][0])
    return jax.lax.scan(body, start, parts, reverse=True, unroll=unroll)[1]


def associative(*arrays):
    """Composes the affine maps x -> b + c x in a tree."""

    def compose(later, earlier):
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    return jax.lax.associative_scan(compose, _parts(*arrays), reverse=True)[0]


def numpy_loop(r_t, discount_t, v_tm1, v_t, reset_t):
    """A Python loop over the rows."""
    delta_t = r_t + discount_t * v_t - v_tm1
    flow_t = discount_t * np.float32(LAMBDA) * (1 - reset_t)
    result, x = np.empty_like(delta_t), np.zeros_like(delta_t[0])
    for t in range(len(delta_t) - 1, -1, -1):
        x = delta_t[t] + flow_t[t] * x
        result[t] = x
    return result


def main(options: Advantages) -> None:
    """Measures all ways at both shapes and checks that they agree."""
    results, rows = [], []
    for shape in ((8, 16),) if options.quick else SHAPES:
        arrays = data(shape)
        host = [np.asarray(x, np.float32) for x in arrays]
        programs = {"scan (jrl)": ours, "unroll 16": unrolled, "associative": associative}
        calls = {name: functools.partial(jax.jit(f), *arrays) for name, f in programs.items()}
        calls["numpy loop"] = functools.partial(numpy_loop, *host)
        expected = numpy_loop(*host)
        error = {n: float(np.abs(np.asarray(call()) - expected).max()) for n, call in calls.items()}
        with quiet_share() as share:
            seconds = in_turn(calls, options.repeats, least=0.02)
        micro = {name: summary([1e6 * s for s in x]) for name, x in seconds.items()}
        result = {"shape": shape, "foreign": share.foreign, "microseconds": micro}
        results.append({**result, "largest_error": error})
        for name, x in micro.items():
            ratio = f"{x['median'] / micro['scan (jrl)']['median']:.2f}"
            numbers = [f"{x[k]:.0f}" for k in ("median", "min", "max")]
            rows.append([list(shape), name, *numbers, ratio, f"{error[name]:.1e}", share.foreign])
    header = ["[T, B]", "way", "median us", "min", "max", "to jrl's", "largest error", "foreign"]
    show("generalised advantages, microseconds per call", header, rows)
    save("gae", {"results": results}, options)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Advantages))
