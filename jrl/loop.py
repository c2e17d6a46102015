"""Whole runs as one program: a population of learners, trained, evaluated and sharded.

    program(states, hps, points) -> (states, history)

One point of the learning curve is some iterations of every member and one evaluation; a program
runs any number of points without returning to Python. Members differ in their keys (seeds) and
in their `Hyper`; they are independent, so over a mesh no device ever waits for another,
not even to report: what `report` is given is added up on the host.
"""

import collections
import functools
import math
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jrl import metrics
from jrl.types import Algorithm, Array, Leaf, Metrics, PyTree

__all__ = [
    "Member",
    "Program",
    "Report",
    "join",
    "make_mesh",
    "make_program",
    "place",
    "population",
    "resize",
    "split",
    "train",
]

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


def split(members: Member) -> dict[str, PyTree]:
    """Takes the parameters out, so that they can be restored without knowing the rest."""
    state = members.state
    learner = getattr(state, "train", state)
    if not hasattr(learner, "params"):
        return {"state": members}
    return {"params": learner.params, "state": _with_params(members, None)}


def join(items: dict[str, PyTree]) -> Member:
    """Undoes `split`."""
    members = items["state"]
    return _with_params(members, items["params"]) if "params" in items else members


def _with_params(members: Member, params: PyTree) -> Member:
    state = members.state
    if hasattr(state, "train"):
        return members.replace(state=state.replace(train=state.train.replace(params=params)))
    return members.replace(state=state.replace(params=params))


def make_mesh(members: int, devices: int | None = None) -> Mesh:
    """Makes a mesh for a population: of the number given, or of all devices that get a share.

    Where the devices do not divide the members, `place` fills the last ones up.
    """
    found = jax.devices()
    if devices is None:
        devices = math.ceil(members / math.ceil(members / len(found)))
    elif devices > len(found):
        raise ValueError(f"devices={devices}, but there are only {len(found)}")
    elif devices > members:
        raise ValueError(
            f"devices={devices} is more than the population of {members}: "
            "choose more seeds, or fewer devices"
        )
    return jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=found[:devices])


def resize(tree: PyTree, members: int) -> PyTree:
    """Cuts a population to its first `members`, or fills it up with copies of the last one."""

    def one(x):
        return x if x.shape[0] == members else x[jnp.minimum(jnp.arange(members), x.shape[0] - 1)]

    return jax.tree.map(one, tree)


def place(tree: PyTree, members: int, mesh: Mesh) -> PyTree:
    """Splits a population over the devices of a mesh, filled up until they divide it."""
    filled = resize(tree, math.ceil(members / mesh.size) * mesh.size)
    return jax.device_put(filled, NamedSharding(mesh, PartitionSpec(AXIS)))


def make_program(
    algorithm: Algorithm,
    iterations: int,
    mesh: Mesh | None = None,
    report: Report | None = None,
    members: int | None = None,
) -> Program:
    """Compiles `points` x (`iterations` iterations, then one evaluation) of a population.

    The history maps names to (sum[points, members], weight[points, members]); evaluations are
    named "eval/...". With a `mesh` that has an axis "population" the members are split over it.
    `report` is called after every point while the program runs, with means over the first
    `members`, by default all.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")

    call = report and _gather(report, 1 if mesh is None else mesh.size)

    def real(sums):
        if members is None or mesh is None:
            return sums
        share = jax.tree.leaves(sums)[0].shape[0]
        counts = jax.lax.axis_index(AXIS) * share + jnp.arange(share) < members
        return jax.tree.map(lambda x: jnp.where(counts, x, jnp.zeros_like(x)), sums)

    def point(population, hps):
        def body(state, _):
            return jax.vmap(algorithm.iterate)(state, hps)

        state, sums = jax.lax.scan(body, population.state, length=iterations)
        keys = jax.vmap(jax.random.fold_in)(population.key, population.point)
        scores = jax.vmap(algorithm.evaluate)(state, keys, hps)
        sums = metrics.total(sums) | {f"eval/{name}": x for name, x in scores.items()}
        if call:
            jax.debug.callback(call, population.point[0] + 1, metrics.total(real(sums)))
        return Member(state, population.key, population.point + 1), sums

    if mesh is not None:
        spec = PartitionSpec(AXIS)
        point = jax.shard_map(
            point, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec), check_vma=False
        )

    @functools.partial(jax.jit, static_argnums=2, donate_argnums=0)
    def program(states, hps, points):
        return jax.lax.scan(lambda s, _: point(s, hps), states, length=points)

    return program


def _gather(report: Report, devices: int):
    """Adds the devices' sums on the host: on the devices one would have to wait for another."""
    lock, points = threading.Lock(), collections.defaultdict(list)

    def callback(point, sums):
        with lock:
            points[int(point)].append(jax.tree.map(float, sums))
            if len(points[int(point)]) < devices:
                return
            parts = points.pop(int(point))
        whole = {name: np.sum([part[name] for part in parts], 0) for name in sums}
        means = {name: float(s / w) if w else math.nan for name, (s, w) in whole.items()}
        report(int(point), means)

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
