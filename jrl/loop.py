"""Whole runs as one program: a population of learners, trained, evaluated and sharded.

    program(states, hps, points) -> (states, history)

One point of the learning curve is some iterations of every member and one evaluation; a program
runs any number of points without returning to Python. Members differ in their keys (seeds) and
in their `Hyper`; they are independent, so over a mesh no device ever waits for another.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from jrl import metrics
from jrl.types import Algorithm, Array, Leaf, Metrics, PyTree

__all__ = ["Member", "Program", "Report", "make_program", "population", "train"]

AXIS = "population"

Program = Callable[[PyTree, PyTree, int], tuple[PyTree, Metrics]]
"""(states, hps, points) -> (states, history); `points` is static, `states` is donated."""

Report = Callable[[int, dict[str, float]], None]
"""(points done so far, means over the population) -> nothing. Called on the host."""


class Member(struct.PyTreeNode):
    """One learner of a population; in a population every array has a leading axis of members."""

    state: Leaf
    key: Leaf
    """A constant root for evaluations; each folds in its point."""
    point: Leaf


def population(algorithm: Algorithm, keys: Array, hps: PyTree) -> Member:
    """Starts one member for every key; `hps` has the same leading axis as `keys`."""

    def one(key, hp):
        init_key, eval_key = jax.random.split(key)
        return Member(algorithm.init(init_key, hp), eval_key, jnp.int32(0))

    return jax.jit(jax.vmap(one))(keys, hps)


def make_program(
    algorithm: Algorithm, iterations: int, mesh: Mesh | None = None, report: Report | None = None
) -> Program:
    """Compiles `points` x (`iterations` iterations, then one evaluation) of a population.

    The history maps names to (sum[points, members], weight[points, members]); evaluations are
    named "eval/...". With a `mesh` that has an axis "population" the members are split over it.
    `report` is called after every point while the program runs.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")

    def point(members, hps):
        def body(state, _):
            return jax.vmap(algorithm.iterate)(state, hps)

        state, sums = jax.lax.scan(body, members.state, length=iterations)
        keys = jax.vmap(jax.random.fold_in)(members.key, members.point)
        scores = jax.vmap(algorithm.evaluate)(state, keys, hps)
        sums = metrics.total(sums) | {f"eval/{name}": x for name, x in scores.items()}
        return Member(state, members.key, members.point + 1), sums

    if mesh is not None:
        spec = PartitionSpec(AXIS)
        point = jax.shard_map(
            point, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec), check_vma=False
        )

    def body(members, hps):
        members, sums = point(members, hps)
        if report is not None:
            means = metrics.mean(metrics.total(sums))
            jax.debug.callback(_call(report), members.point[0], means)
        return members, sums

    @functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
    def program(states, hps, points):
        return jax.lax.scan(lambda s, _: body(s, hps), states, length=points)

    return program


def _call(report: Report):
    def callback(point, means):
        report(int(point), {name: float(x) for name, x in means.items()})

    return callback


def train(
    algorithm: Algorithm, keys: Array, hps: PyTree, iterations: int, points: int = 1
) -> tuple[Member, Metrics]:
    """Trains a population from scratch in one program: the whole library in one call.

    >>> from jrl.algos import ppo
    >>> from jrl.envs import cartpole
    >>> config = ppo.Config(num_envs=2, num_steps=8, minibatches=2, eval_episodes=2)
    >>> hps = jax.tree.map(lambda x: jnp.full(2, x), ppo.Hyper())
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> _, history = train(ppo.make(cartpole.make(), config), keys, hps, iterations=2)
    >>> metrics.mean(history)["eval/return"].shape
    (1, 2)
    """
    return make_program(algorithm, iterations)(population(algorithm, keys, hps), hps, points)
