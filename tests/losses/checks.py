"""Checks that every test of a loss repeats.

`tests/losses` is no package: pytest (import mode `prepend`) puts this directory on `sys.path`, so
a test file here writes

    from checks import golden, gradients_hold, through_jit_and_vmap

and pytest must see no second `checks.py` elsewhere under `tests/`.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

GOLDENS = pathlib.Path(__file__).parent / "goldens"


@functools.cache
def _load(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())


def golden(name, case):
    """Returns `(inputs, outputs)` of one case of `goldens/<name>.json`.

    Both are dicts of NumPy arrays: float32, int32, or bool.
    """
    record = _load(name)["cases"][case]
    return tuple({k: _array(v) for k, v in record[part].items()} for part in ("inputs", "outputs"))


def _array(value):
    array = np.asarray(value)
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int32)
    return array


def check_float64_grads(f, *args, modes=("fwd", "rev"), order=1, atol=1e-6, rtol=1e-6, eps=1e-6):
    """Compares the gradients of `f` at `args` with finite differences, all in float64.

    Only the floating arguments (arrays or numbers) are differentiated; the others are held fixed.
    Choose points away from kinks (clip edges, argmax ties): finite differences step over them.
    """
    with jax.enable_x64():
        args = [None if a is None else np.asarray(a) for a in args]
        float_at = [
            i for i, a in enumerate(args) if a is not None and np.issubdtype(a.dtype, np.floating)
        ]
        assert float_at, "nothing to differentiate"

        def of_floats(*floats):
            full = list(args)
            for i, x in zip(float_at, floats, strict=True):
                full[i] = jnp.asarray(x)
            return f(*full)

        primals = [jnp.asarray(args[i], jnp.float64) for i in float_at]
        args = [a if a is None else jnp.asarray(a) for a in args]
        check_grads(of_floats, primals, order, modes=modes, atol=atol, rtol=rtol, eps=eps)


def gradients_hold(f, *args):
    """`check_float64_grads` of the compiled `f`, for functions with jaxtyping annotations.

    Finite differences hand over NumPy arrays, which the annotations refuse.
    """
    check_float64_grads(jax.jit(lambda *a: f(*map(jnp.asarray, a))), *args)


def through_jit_and_vmap(f, *args, axis=0, rtol=1e-5, atol=1e-6):
    """Asserts f(*args) == jit(f)(*args) == vmap(f)(*args), and returns f(*args).

    `axis` is the axis of examples, in all arrays and results: 0 for elementwise losses, 1 for
    time-major `[T, B]` ones. Arguments with fewer axes than that (hyper-parameters) are shared by
    all examples. For a function of a whole batch, give the arrays one more axis to be mapped.
    """
    args = [a if a is None else jnp.asarray(a) for a in args]
    plain = f(*args)
    in_axes = tuple(axis if a is not None and a.ndim > axis else None for a in args)
    assert any(a is not None for a in in_axes), "nothing to map over"
    close(jax.jit(f)(*args), plain, rtol, atol)
    close(jax.vmap(f, in_axes, axis)(*args), plain, rtol, atol)
    return plain


def pairs(case):
    """Columns [N] of a golden of TRL on pairs (log-probs, the reference's), inputs, outputs."""
    inputs, outputs = golden("trl", case)
    columns = [inputs[name][:, i] for name in ("log_probs", "ref_log_probs") for i in (0, 1)]
    return [jnp.asarray(c) for c in columns], inputs, outputs


def check_pairs(loss, columns, hyper, outputs):
    """The loss of each pair, and its gradient in the first two columns."""
    close(through_jit_and_vmap(loss, *columns, *hyper), outputs["loss"])
    hyper = [jnp.asarray(h) for h in hyper]
    grads = jax.grad(lambda w, x: loss(w, x, *columns[2:], *hyper).sum(), (0, 1))
    close(jnp.stack(grads(*columns[:2]), -1), outputs["grad"])


def close(actual, expected, rtol=1e-5, atol=1e-6):
    """Asserts that two pytrees have one structure, equal shapes and nearly equal numbers."""
    actual_leaves, actual_tree = jax.tree.flatten(actual)
    expected_leaves, expected_tree = jax.tree.flatten(expected)
    assert actual_tree == expected_tree, (actual_tree, expected_tree)
    for a, e in zip(actual_leaves, expected_leaves, strict=True):
        assert np.shape(a) == np.shape(e), (np.shape(a), np.shape(e))
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=rtol, atol=atol)
