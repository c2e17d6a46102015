"""Does it cost anything to write a loss for one example and `vmap` it, against a batch-native call?

The losses take any leading shape, so both are possible. Forward, and gradient of the sum, of
losses with and without an axis of actions, atoms or quantiles, and of the time-major GAE.

    python -m benchmarks.losses [--quick] [--repeats 15]
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, in_turn, quiet_share, save, show, summary
from jrl.losses import kl, policy_gradient, preference, returns, value

BATCH = 16_384


@dataclasses.dataclass
class Losses(Options):
    """Options of this benchmark."""

    repeats: int = 15
    """Timed runs of every row; the median is compared."""


def cases(n: int) -> dict:
    """Returns name -> (loss of arrays with leading axis n, the arrays, the axis of examples)."""
    keys = iter(jax.random.split(jax.random.key(0), 16))

    def floats(*shape):
        return jax.random.normal(next(keys), shape)

    a, b, c, d = (floats(n) for _ in range(4))
    q, q2, action = floats(n, 6), floats(n, 6), jax.random.randint(next(keys), (n,), 0, 6)
    probs, support = jax.nn.softmax(floats(n // 8, 51)), jnp.linspace(-10.0, 10.0, 51)
    x, y, taus = floats(n // 8, 32), floats(n // 8, 32), value.quantile_midpoints(32)
    long, discount = floats(128, n // 128), 0.99 * jnp.ones((128, n // 128))

    def project(p, r):
        return value.categorical_td_target(r, 0.99 * jnp.ones_like(r), p, support)

    def advantages(r, v):
        g = discount if r.ndim == 2 else discount[:, 0]
        return returns.generalized_advantages(r, g, 0.95, v, v)

    return {
        "clipped_surrogate": (policy_gradient.clipped_surrogate, (0.1 * a, b), 0),
        "clipped_value_loss": (
            lambda v, old, target: value.clipped_value_loss(v, old, target, 0.2),
            (a, b, c),
            0,
        ),
        "q_learning_error": (
            lambda q, q2, r: value.q_learning_error(q, action_of(q, action), r, r, q2),
            (q, q2, d),
            0,
        ),
        "categorical_kl": (kl.categorical_kl, (q, q2), 0),
        "entropy_bonus": (policy_gradient.entropy_bonus, (q,), 0),
        "categorical_td_target": (project, (probs, a[: n // 8]), 0),
        "quantile_huber_loss": (lambda x, y: value.quantile_huber_loss(x, taus, y), (x, y), 0),
        "dpo_loss": (
            lambda a, b, c, d: preference.dpo_loss(a, b, c, d, 0.1),
            (a, b, c, d),
            0,
        ),
        "generalized_advantages": (advantages, (long, 0.5 * long), 1),
    }


def action_of(q, action):
    """Actions that fit: all of them for a batch, the first for one example."""
    return action if q.ndim == 2 else action[0]


def main(options: Losses) -> None:
    """Measures all losses, forward and gradient."""
    results, rows = [], []
    for name, (loss, arrays, axis) in cases(1024 if options.quick else BATCH).items():
        ways = {"native": loss, "vmap": jax.vmap(loss, axis, axis)}
        calls = {}
        for way, f in ways.items():
            calls[f"{way} forward"] = functools.partial(jax.jit(f), *arrays)
            total = functools.partial(lambda f, *x: jnp.sum(f(*x) ** 2), f)
            calls[f"{way} gradient"] = functools.partial(jax.jit(jax.grad(total)), *arrays)
        with quiet_share() as share:
            seconds = in_turn(calls, options.repeats, least=0.005)
        micro = {way: summary([1e6 * s for s in x]) for way, x in seconds.items()}
        results.append({"loss": name, "foreign": share.foreign, "microseconds": micro})
        cells = []
        for what in ("forward", "gradient"):
            native, mapped = (micro[f"{way} {what}"]["median"] for way in ways)
            cells += [f"{native:.0f}", f"{mapped:.0f}", f"{mapped / native:.2f}"]
        rows.append([name, *cells, share.foreign])
    header = ["loss", "forward us", "vmap", "ratio", "gradient us", "vmap", "ratio", "foreign"]
    show("losses: batch-native call against vmap of one example, medians", header, rows)
    save("losses", {"results": results}, options)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Losses))
