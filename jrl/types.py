"""Array shapes and function types shared by every room of the house."""

from typing import Any

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Leaf",
    "Metrics",
    "Params",
    "PyTree",
    "Scalar",
]

Key = PRNGKeyArray
PyTree = Any
Params = PyTree
Leaf = Any
"""Annotation of a struct's field: a number in its default, any array once traced or batched."""

Scalar = Float[Array, ""] | float
"""A floating-point number: a Python float, or a traced one (a leaf of a `Hyper`)."""

Metrics = dict[str, tuple[Any, Any]]
"""Name -> (sum, weight). The mean is sum / weight, divided once, after every reduction."""
