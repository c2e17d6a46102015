"""The training step: one contract for every learner, from a bandit to a language model.

    train_step(state, batch, hp) -> (state, loss)

It is pure and knows neither mesh, nor microbatches, nor dtypes: `jit`, `vmap` over seeds and
over hyper-parameters, `scan`, sharding and donation are done to it from outside. An objective
sums, the step divides once:

    g = (sum_i w_i grad l_i) / (sum_i w_i)

so that gradient accumulation, padding, packing, masks and sharding do not change the number.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jrl import rng, tree
from jrl.types import Array, Float, Key, Leaf, Metrics, Params, PyTree, Scalar

__all__ = [
    "GradFn",
    "Loss",
    "Objective",
    "Optimizer",
    "TrainState",
    "TrainStep",
    "annealed",
    "gradient",
    "init",
    "make_train_step",
    "sum_columns",
    "train_epochs",
]


class TrainState(struct.PyTreeNode):
    """What learning changes, arrays only: it vmaps, shards, donates and checkpoints as it is.

    Functions stay outside: a state that carries an optimizer whose learning rate was traced
    cannot be resumed.
    """

    step: Leaf
    params: Leaf
    opt_state: Leaf
    extra: Leaf
    """What is not differentiated: target networks, running statistics, frozen base models."""
    key: Leaf
    """A constant root; every step folds in `step`, so a resumed run draws the same numbers."""


class Loss(NamedTuple):
    """The sums of one (micro)batch.

    `total` = sum_i w_i l_i, differentiable, not divided; `weight` = sum_i w_i; `metrics` maps
    names to (sum, weight); `aux` holds per-example leaves with a leading axis of examples.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: Metrics = {}
    aux: PyTree = ()

    @property
    def mean(self) -> Float[Array, ""]:
        """The loss per unit of weight; 0 for an empty batch."""
        return self.total * _inverse(self.weight)


Objective = Callable[[Params, PyTree, PyTree, Key, PyTree], Loss]
"""(params, extra, batch, key, hp) -> Loss."""

GradFn = Callable[[Params, PyTree, PyTree, Key, PyTree], tuple[Params, Loss]]
"""(params, extra, batch, key, hp) -> (gradients of the mean loss, Loss)."""

Optimizer = Callable[[PyTree], optax.GradientTransformation]
"""hp -> transformation. It is rebuilt inside the trace, so learning rates can be vmapped."""

TrainStep = Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Loss]]
"""(state, batch, hp) -> (state, loss)."""


def init(key: Key, params: Params, optimizer: Optimizer, hp: PyTree, extra: PyTree = ()):
    """Makes the first `TrainState`.

    Leaves are copied: a target network that aliases `params` could not be donated.

    >>> state = init(jax.random.key(0), {"w": jnp.ones(2)}, lambda hp: optax.sgd(hp), 0.1)
    >>> int(state.step)
    0
    """
    state = TrainState(jnp.int32(0), params, optimizer(hp).init(params), extra, key)
    return jax.tree.map(jnp.copy, state)


def gradient(objective: Objective, microbatches: int = 1, compute_dtype=None) -> GradFn:
    """Turns an objective into a function that returns the gradient of its mean loss.

    `microbatches` splits the leading axis of the batch (which it must divide) and accumulates
    sums one part at a time, in the dtype of the parameters. `compute_dtype` is what the
    parameters are cast to before the objective sees them; gradients come back in theirs.
    Raises ValueError if the batch does not divide.

    >>> def objective(params, extra, batch, key, hp):
    ...     return Loss(jnp.sum((params - batch) ** 2), jnp.float32(batch.size))
    >>> grads, loss = gradient(objective)(jnp.float32(0), (), jnp.ones(4), jax.random.key(0), None)
    >>> float(grads), float(loss.total), float(loss.weight)
    (-2.0, 4.0, 4.0)
    """
    if microbatches < 1:
        raise ValueError(f"microbatches must be at least 1, got {microbatches}")

    def grad_fn(params, extra, batch, key, hp):
        compute = tree.cast(params, compute_dtype)

        def one(part, part_key):
            def total(p):
                loss = objective(p, extra, part, part_key, hp)
                return loss.total, loss

            grads, loss = jax.grad(total, has_aux=True)(compute)
            return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), loss

        grads, loss = _accumulate(one, microbatches)(batch, key)
        inverse = _inverse(loss.weight)
        return jax.tree.map(lambda g: (inverse * g).astype(g.dtype), grads), loss

    return grad_fn


def make_train_step(
    grad_fn: GradFn,
    optimizer: Optimizer,
    after: Callable[[TrainState, Loss, PyTree], PyTree] = lambda state, loss, hp: state.extra,
    skip_nonfinite: bool = True,
) -> TrainStep:
    """Makes the training step of a gradient function and an optimizer.

    The optimizer's `update` also receives `value` (the mean loss) and `aux`. `after(state,
    loss, hp)` returns the next `extra` from the updated state. When the loss or the gradient
    is not finite the update is skipped: only `step` advances, the metric `skipped` counts it,
    and the step's other metrics weigh nothing. `skip_nonfinite=False` lets it through.

    >>> def objective(params, extra, batch, key, hp):
    ...     return Loss(jnp.sum((params - batch) ** 2), jnp.float32(batch.size))
    >>> train_step = make_train_step(gradient(objective), lambda lr: optax.sgd(lr))
    >>> state = init(jax.random.key(0), jnp.float32(0), lambda lr: optax.sgd(lr), 0.25)
    >>> state, loss = jax.jit(train_step)(state, jnp.ones(4), 0.25)
    >>> float(state.params), float(loss.mean)
    (0.5, 1.0)
    """

    def train_step(state, batch, hp):
        key = jax.random.fold_in(state.key, state.step)
        grads, loss = grad_fn(state.params, state.extra, batch, key, hp)
        tx = optax.with_extra_args_support(optimizer(hp))
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, value=loss.mean, aux=loss.aux
        )
        params = optax.apply_updates(state.params, updates)
        new = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        new = new.replace(extra=after(new, loss, hp))
        grad_norm = optax.tree.norm(grads)
        sums = {
            "loss": (loss.total, loss.weight),
            "grad_norm": (grad_norm, jnp.float32(1)),
            **loss.metrics,
        }
        finite = jnp.isfinite(loss.total) & jnp.isfinite(grad_norm)
        if skip_nonfinite:
            # The key is constant, and typed keys have no `where` against themselves to pay for.
            kept = state.replace(step=new.step, key=None)
            new = tree.select(finite, new.replace(key=None), kept).replace(key=state.key)
            sums = tree.select(finite, sums, jax.tree.map(jnp.zeros_like, sums))
            sums["skipped"] = (1.0 - finite, jnp.float32(1))
        return new, loss._replace(metrics=sums)

    return train_step


def sum_columns(loss: Array, columns: dict[str, Array], mask: Array | None = None) -> Loss:
    """Sums per-example losses, and columns of the same shape as metrics, over a (micro)batch.

    `mask` weighs the examples. NaN behind the mask leaves the sums alone but not the gradient:
    columns that may hold one are cleaned in `prepare`.

    >>> loss = sum_columns(jnp.array([1.0, 5.0]), {}, jnp.array([1.0, 0.0]))
    >>> float(loss.total), float(loss.weight)
    (1.0, 1.0)
    """
    # Half precision cannot count: 1001 examples would weigh 1000.
    dtype = jnp.promote_types(loss.dtype, jnp.float32)
    weight = jnp.ones(loss.shape, dtype) if mask is None else mask.astype(dtype)

    def total(x):
        return jnp.sum(weight * jnp.where(weight != 0, x, 0.0))

    count = jnp.sum(weight)
    return Loss(total(loss), count, {name: (total(x), count) for name, x in columns.items()})


def annealed(value: Scalar, share: Scalar, updates: int) -> optax.Schedule:
    """Makes a schedule that loses `share` of `value` linearly over `updates` updates."""

    def schedule(count):
        return value * (1 - share * jnp.minimum(count / updates, 1.0))

    return schedule


def train_epochs(
    train_step: TrainStep,
    state: TrainState,
    batch: PyTree,
    key: Key,
    hp: PyTree,
    epochs: int,
    minibatches: int,
    prepare: Callable[[PyTree], PyTree] = lambda part: part,
) -> tuple[TrainState, Metrics]:
    """Passes `epochs` times over a batch in freshly shuffled minibatches, one step for each.

    `prepare` is for columns that couple the examples of a minibatch. Returns the metrics of every
    step, [epochs, minibatches]. Raises ValueError if `minibatches` does not divide the leading
    axis of the batch: no example is silently dropped.
    """
    examples = jax.tree.leaves(batch)[0].shape[0]
    if examples % minibatches:
        raise ValueError(f"minibatches={minibatches} does not divide the {examples} examples")

    def one(state, part):
        state, loss = train_step(state, prepare(part), hp)
        return state, loss.metrics

    def epoch(state, key):
        order = rng.permutation(key, examples).reshape(minibatches, -1)
        return jax.lax.scan(one, state, tree.take(batch, order))

    return jax.lax.scan(epoch, state, jax.random.split(key, epochs))


def _inverse(weight):
    return jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0.0)


def _accumulate(one, n: int):
    """Sums gradients, totals, weights and metrics over `n` microbatches and rejoins `aux`."""
    if n == 1:
        return one

    def accumulated(batch, key):
        for leaf in jax.tree.leaves(batch):
            if leaf.shape[0] % n:
                raise ValueError(
                    f"microbatches={n} does not divide the batch of {leaf.shape[0]} examples"
                )

        # Strided parts: under a mesh each device keeps an equal share of every microbatch.
        def split(x):
            return x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1)

        def join(x):
            return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

        parts = (jax.tree.map(split, batch), jax.random.split(key, n))
        grads, loss = jax.eval_shape(one, *tree.take(parts, 0))
        sums = (grads, loss._replace(aux=()))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)

        def body(sums, part):
            grads, loss = one(*part)
            return jax.tree.map(jnp.add, sums, (grads, loss._replace(aux=()))), loss.aux

        (grads, loss), aux = jax.lax.scan(body, zeros, parts)
        return grads, loss._replace(aux=jax.tree.map(join, aux))

    return accumulated
