"""Models that runs begin with: what goes together."""

import dataclasses

import jax
import jax.numpy as jnp
import tiny

from jrl.algos import sft
from jrl.lm.policy import Frozen, TokenBatch
from jrl.streams import models


def test_cudnn_computes_in_bfloat16_for_parameters_in_float32(monkeypatch):
    """The standard recipe: what counts is what the model computes in."""
    source = dataclasses.replace(tiny.MODEL, attention="cudnn", dtype="float32")
    source.validate()
    found, attention = [], jax.nn.dot_product_attention

    def record(q, k, v, implementation, **options):
        found.append((implementation, q.dtype.name))
        return attention(q, k, v, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    opened = models.open_model(source, jax.random.key(0))
    policy, params, base = models.adapted(opened, jax.random.key(1))
    updater = sft.make(policy, sft.Config(compute_dtype="bfloat16"))
    ones, hp = jnp.ones((2, 4), jnp.int32), sft.Hyper()
    batch = TokenBatch(ones, ones > 0, ones, ones)
    state = updater.init(jax.random.key(2), params, Frozen(base=base), hp)
    state, _ = jax.eval_shape(updater.update, state, batch, hp)
    assert set(found) == {("cudnn", "bfloat16")}
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
