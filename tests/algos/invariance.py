"""What tests of objectives have in common: gradients, and whether two of them are the same."""

import functools

import jax
import numpy as np

from jrl import train

# Programs that run once, in milliseconds: seven times faster to compile like this.
HASTE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):  # which has these emitters alone
    HASTE["xla_cpu_use_fusion_emitters"] = False


def jit(function):
    """`jax.jit` that hardly optimises."""
    return jax.jit(function, compiler_options=HASTE)


@functools.cache
def _compiled(objective, microbatches):
    return jit(train.gradient(objective, microbatches))


def gradient(objective, state, batch, hp, microbatches=1):
    """Returns (gradients, `Loss`); one compilation for each objective and shape of a batch."""
    grad_fn = _compiled(objective, microbatches)
    return grad_fn(state.params, state.extra, batch, jax.random.key(2), hp)


def same(a, b, atol=1e-6):
    (grads_a, loss_a), (grads_b, loss_b) = a, b
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), grads_a, grads_b)
    np.testing.assert_allclose(loss_a.weight, loss_b.weight)
    np.testing.assert_allclose(loss_a.total, loss_b.total, rtol=1e-4, atol=1e-4)
    same_metrics(loss_a.metrics, loss_b.metrics)


def same_metrics(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-4, err_msg=name)
