"""Low-rank adapters: two thin matrices beside each frozen kernel, trained in its place.

Adapters are a tree of their own, with the paths of the kernels that they adapt. A training step
has them as `params` and the model as `extra`, and its objective runs `merge(extra, params, scale)`.
"""

import re

import jax
import jax.numpy as jnp

from jrl.types import Key, Params, Scalar

__all__ = ["init", "merge"]


def init(key: Key, params: Params, rank: int, targets: str = "") -> Params:
    """Makes adapters for the kernels below "layers" whose path `targets` is found in.

    Source: Hu et al. 2021, section 4.1, https://arxiv.org/abs/2106.09685: `a` Gaussian, `b` zero,
    so that the merged model is the base at first.
    Args: `params` of a model, or their shapes; `rank` of the product; `targets` a regular
    expression, for example "attention/(q|v)/", the paper's choice, or "" for all kernels, whose
    paths are like "layers/attention/q/kernel".
    Returns: in place of every kernel [layers, inputs, outputs] a dict of `a`
    [layers, inputs, rank] with variance 1 / inputs and `b` [layers, rank, outputs], float32.
    Raises: ValueError if `targets` is no regular expression or finds no kernel, or if the rank is
    not below both sizes of one.

    >>> params = {"layers": {"mlp": {"up": {"kernel": jnp.ones((2, 8, 16))}}}}
    >>> jax.tree.map(jnp.shape, init(jax.random.key(0), params, rank=4))["layers"]["mlp"]["up"]
    {'kernel': {'a': (2, 8, 4), 'b': (2, 4, 16)}}
    """
    kernels = {
        _path(keys): x
        for keys, x in jax.tree_util.tree_leaves_with_path(params)
        if re.fullmatch("layers/.*kernel", _path(keys))
    }
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ValueError(f"targets={targets!r} must be a regular expression: {error}") from None
    chosen = {path: x.shape for path, x in kernels.items() if pattern.search(path)}
    if not chosen:
        raise ValueError(f"targets={targets!r} is in none of {', '.join(kernels)}")
    adapters = {}
    for key_, (path, shape) in zip(jax.random.split(key, len(chosen)), chosen.items(), strict=True):
        layers, inputs, outputs = shape
        if not 1 <= rank < min(inputs, outputs):
            raise ValueError(f"rank={rank} must be from 1 to below the sizes of {path} {shape}")
        a = jax.random.normal(key_, (layers, inputs, rank)) * inputs**-0.5
        place = adapters
        for name in path.split("/"):
            place = place.setdefault(name, {})
        place |= {"a": a, "b": jnp.zeros((layers, rank, outputs))}
    return adapters


def merge(base: Params, adapters: Params, scale: Scalar = 1.0) -> Params:
    """Returns the parameters of the adapted model: `w + scale a b` for kernels with an adapter.

    Source: Hu et al. 2021, eq. 3, https://arxiv.org/abs/2106.09685, where the scale is alpha / r.
    Args: `base` parameters of a model; `adapters` what `init` made for it; `scale` a number.
    Returns: the structure, shapes and dtypes of `base`; the product is float32. No gradient
    reaches `base`. The result runs, and is saved, like any model; `merge` with the negative scale
    undoes it up to rounding.
    Raises: ValueError for adapters of kernels that `base` does not have, or not in that shape.

    >>> base = {"layers": {"up": {"kernel": jnp.ones((1, 2, 2))}}}
    >>> adapter = {"a": jnp.array([[[1.0], [2.0]]]), "b": jnp.array([[[3.0, 4.0]]])}
    >>> merge(base, {"layers": {"up": {"kernel": adapter}}}, 0.5)["layers"]["up"]["kernel"]
    Array([[[2.5, 3. ],
            [4. , 5. ]]], dtype=float32)
    """

    def one(keys, w):
        adapter = found.pop(_path(keys), None)
        w = jax.lax.stop_gradient(w)
        if adapter is None:
            return w
        a, b = adapter["a"], adapter["b"]
        if w.shape != (*a.shape[:-1], b.shape[-1]):
            raise ValueError(
                f"adapters: {a.shape} and {b.shape} do not fit {_path(keys)} {w.shape}"
            )
        y = jnp.einsum("lir,lro->lio", a, b, preferred_element_type=jnp.float32)
        return (w + scale * y).astype(w.dtype)

    pairs = jax.tree_util.tree_leaves_with_path(
        adapters, is_leaf=lambda x: isinstance(x, dict) and "a" in x
    )
    found = {_path(keys): adapter for keys, adapter in pairs}
    merged = jax.tree_util.tree_map_with_path(one, base)
    if found:
        raise ValueError(f"adapters: the model has no {', '.join(found)}")
    return merged


def _path(keys) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")
