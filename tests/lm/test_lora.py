"""Adapters against arithmetic by hand and in NumPy, and inside a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrl import train
from jrl.lm import huggingface, lora
from jrl.lm.config import Config
from jrl.lm.transformer import make

CONFIG = Config(vocab_size=32, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8)
MODEL = make(CONFIG)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def trained(adapters, seed=0):
    """The same adapters with numbers in them."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), adapters)


def logits(params):
    return MODEL.logits(params, MODEL.hidden(params, TOKENS)[0])


def test_arithmetic_by_hand():
    base = {"layers": {"up": {"kernel": jnp.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])}}}
    adapter = {"a": jnp.array([[[1.0], [-2.0]]]), "b": jnp.array([[[10.0, 20.0, 30.0]]])}
    adapters = {"layers": {"up": {"kernel": adapter}}}
    merged = jax.jit(lora.merge)(base, adapters, 0.1)["layers"]["up"]["kernel"]
    np.testing.assert_allclose(merged, [[[2.0, 4.0, 6.0], [2.0, 1.0, 0.0]]], atol=1e-6)


def test_merge_is_the_sum_of_products_of_every_layer(params):
    adapters = trained(lora.init(jax.random.key(1), params, 3))
    merged = paths(jax.jit(lora.merge)(params, adapters, 0.5))
    flat, checked = paths(adapters), 0
    for path, w in paths(params).items():
        expected = np.asarray(w, np.float64)
        if f"{path}/a" in flat:
            for layer in range(CONFIG.num_layers):
                a, b = (np.asarray(flat[f"{path}/{x}"][layer], np.float64) for x in "ab")
                expected[layer] += 0.5 * sum(np.outer(a[:, r], b[r]) for r in range(3))
            checked += 1
        np.testing.assert_allclose(merged[path], expected, rtol=1e-5, atol=1e-5)
    assert checked == 7 and len(flat) == 14


def test_a_fresh_adapter_changes_nothing(params):
    adapters = jax.jit(lora.init, static_argnums=2)(jax.random.key(1), params, 4)
    merged = lora.merge(params, adapters, 2.0)
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    a = adapters["layers"]["mlp"]["down"]["kernel"]["a"]
    assert a.shape == (2, 384, 4)
    np.testing.assert_allclose(a.std(), 384**-0.5, rtol=0.1)
    assert not np.allclose(a, adapters["layers"]["mlp"]["down"]["kernel"]["a"][::-1])


def test_the_adapted_model_is_the_base_with_a_side_path(params):
    """x (w + s a b) = x w + s (x a) b, through the whole model."""
    adapters = trained(lora.init(jax.random.key(1), params, 2, "mlp/down"))
    adapter = adapters["layers"]["mlp"]["down"]["kernel"]
    assert len(paths(adapters)) == 2
    wide = {**params, "layers": {**params["layers"], "mlp": dict(params["layers"]["mlp"])}}
    kernel = np.asarray(params["layers"]["mlp"]["down"]["kernel"], np.float64)
    side = np.einsum("lfr,lrd->lfd", *(np.asarray(adapter[x], np.float64) for x in "ab"))
    wide["layers"]["mlp"]["down"] = {"kernel": jnp.asarray(kernel + 0.01 * side, jnp.float32)}
    ours = jax.jit(lambda base, x: logits(lora.merge(base, x, 0.01)))(params, adapters)
    np.testing.assert_allclose(ours, jax.jit(logits)(wide), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_adapters_alone(params):
    adapters = trained(lora.init(jax.random.key(1), params, 2, "attention/(q|v)/"))

    @jax.jit
    def gradients(base, adapters, scale):
        def loss(base, adapters):
            return jnp.mean(jnp.square(logits(lora.merge(base, adapters, scale))))

        def of_merged(merged):
            return jnp.mean(jnp.square(logits(merged)))

        both = jax.grad(loss, (0, 1))(base, adapters)
        return both, jax.grad(of_merged)(lora.merge(base, adapters, scale))

    (of_base, of_adapters), of_merged = gradients(params, adapters, 0.25)
    assert all(not x.any() for x in jax.tree.leaves(of_base))
    # d/da = s (dL/dW) b^T and d/db = s a^T (dL/dW).
    for name in ("q", "v"):
        w = np.asarray(of_merged["layers"]["attention"][name]["kernel"], np.float64)
        ours = of_adapters["layers"]["attention"][name]["kernel"]
        a, b = (np.asarray(adapters["layers"]["attention"][name]["kernel"][x]) for x in "ab")
        for layer in range(CONFIG.num_layers):
            expected = 0.25 * w[layer] @ b[layer].T
            np.testing.assert_allclose(ours["a"][layer], expected, rtol=1e-3, atol=1e-7)
            expected = 0.25 * a[layer].T @ w[layer]
            np.testing.assert_allclose(ours["b"][layer], expected, rtol=1e-3, atol=1e-7)


def test_training_with_the_base_in_extra(params):
    """Adapters are `params` and the base `extra`, in any training step, in bfloat16 as well."""

    def objective(adapters, base, batch, key, hp):
        logs = jax.nn.log_softmax(logits(lora.merge(base, adapters, 2.0))[:, :-1])
        losses = -jnp.take_along_axis(logs, batch[:, 1:, None], axis=-1)
        return train.Loss(jnp.sum(losses), jnp.float32(losses.size), {}, ())

    # A new model's embedding is too small to say anything with certainty.
    base = {**params, "embedding": 50 * params["embedding"]}
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    adapters = lora.init(jax.random.key(1), base, 4)
    step = train.make_train_step(train.gradient(objective), lambda hp: optax.adam(0.02))
    state = train.init(jax.random.key(2), adapters, lambda hp: optax.adam(0.02), None, extra=base)
    losses = []
    step = jax.jit(step)
    for _ in range(30):
        state, loss = step(state, jnp.asarray(TOKENS), None)
        losses.append(float(loss.total / loss.weight))
    assert losses[-1] < 0.5 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, state.extra, base)
    merged = lora.merge(base, state.params, 2.0)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.bfloat16.dtype}
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.float32.dtype}


def test_a_merged_model_is_a_plain_folder(params, tmp_path):
    adapters = trained(lora.init(jax.random.key(1), params, 2))
    merged = lora.merge(params, adapters, 0.1)
    huggingface.save(tmp_path / "merged", CONFIG, merged)
    config, loaded = huggingface.load(tmp_path / "merged")
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded, merged)
    back = lora.merge(merged, adapters, -0.1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), back, params)


def test_ranks_and_targets_that_do_not_fit(params):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="rank=0 must be from 1 to below the sizes of layers/att"):
        lora.init(key, params, 0)
    with pytest.raises(ValueError, match=r"rank=8 must .* layers/attention/k/kernel \(2, 16, 8\)"):
        lora.init(key, params, 8)
    with pytest.raises(ValueError, match="targets='query' is in none of layers/attention/k/kernel"):
        lora.init(key, params, 2, "query")
    with pytest.raises(ValueError, match=r"targets='\(' must be a regular expression: missing \)"):
        lora.init(key, params, 2, "(")
    adapters = lora.init(key, params, 2, "attention/q")
    base = {**params, "layers": {**params["layers"], "attention": {}}}
    with pytest.raises(ValueError, match="the model has no layers/attention/q/kernel"):
        lora.merge(base, adapters)
    wide = make(Config(vocab_size=32, num_layers=2, width=32, num_heads=2, head_dim=8))
    base = jax.eval_shape(wide.init, key)
    base = jax.tree.map(lambda x: jnp.zeros(x.shape), base)
    with pytest.raises(ValueError, match=r"do not fit layers/attention/q/kernel \(2, 32, 16\)"):
        lora.merge(base, adapters)
