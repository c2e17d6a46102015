"""The transformer against transformers: logits, gradients, packing, cache; what it compiles to."""

import dataclasses

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from jrl.lm import huggingface
from jrl.lm.attention import init_cache
from jrl.lm.config import Config, Rope, frequencies
from jrl.lm.transformer import init_score_head, make, scores, unstack


@pytest.fixture(scope="module", params=families.FAMILIES)
def family(request, tmp_path_factory):
    """A model of transformers, and the same as our configuration and parameters."""
    theirs = families.make(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, *huggingface.load(folder)


def run(config):
    """The jitted function from parameters and tokens to logits."""
    model = make(config)

    @jax.jit
    def logits(params, tokens, positions=None, segments=None):
        return model.logits(params, model.hidden(params, tokens, positions, segments)[0])

    return logits


def distance(x, y):
    """The largest difference, as a part of the largest number."""
    return float(np.abs(np.asarray(x) - np.asarray(y)).max() / np.abs(np.asarray(y)).max())


def test_logits(family):
    theirs, config, params = family
    tokens = families.tokens()
    worst = distance(run(config)(params, tokens), families.logits(theirs, tokens))
    print(f"logits: {worst:.1e}")
    assert worst < 1e-5


def test_padding_on_either_side(family):
    theirs, config, params = family
    tokens, lengths = families.tokens(), (20, 13, 1)
    for side in ("right", "left"):
        mask = np.stack([np.arange(20) < n for n in lengths])
        mask = mask if side == "right" else mask[:, ::-1]
        ours = run(config)(params, tokens, None, mask.astype(np.int32))
        theirs_padded = families.logits(theirs, np.where(mask, tokens, 0), mask)
        assert distance(ours[mask], theirs_padded[mask]) < 1e-5, side
        assert np.isfinite(ours).all()


def test_packed_rows_equal_separate_rows(family):
    theirs, config, params = family
    rows = [families.tokens(1, n, seed=n)[0] for n in (7, 9, 4)]
    packed = np.concatenate([*rows, np.zeros(5, np.int32)])[None]
    segments = np.repeat([1, 2, 3, 0], [7, 9, 4, 5])[None].astype(np.int32)
    ours = run(config)(params, packed, None, segments)[0]
    for number, row in enumerate(rows, 1):
        separate = families.logits(theirs, row[None])[0]
        assert distance(ours[segments[0] == number], separate) < 1e-5


def test_gradients(family, tmp_path):
    import torch

    theirs, config, params = family
    tokens = families.tokens(2, 12)
    model = make(config)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = model.logits(params, model.hidden(params, tokens[:, :-1])[0])
        logs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
        return -jnp.mean(logs)

    # Saved as if they were parameters, gradients have the names that they have in torch.
    huggingface.save(tmp_path / "gradients", config, gradient(params))
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "gradients")
    ours = dict(ours.named_parameters())
    theirs.zero_grad()
    ids = torch.from_numpy(tokens.astype(np.int64))
    theirs(ids, labels=ids, use_cache=False).loss.backward()
    for name, x in theirs.named_parameters():
        assert distance(ours[name].detach(), x.grad) < 1e-4, name
    theirs.zero_grad()


@pytest.mark.parametrize("stacked", [True, False])
def test_cached_decoding_equals_the_full_forward(family, stacked):
    theirs, config, params = family
    tokens = families.tokens(2, 16)
    model = make(config)
    cache = init_cache(config, 2, 24)
    if not stacked:
        params = {**params, "layers": unstack(params["layers"])}
        cache = unstack(cache)

    @jax.jit
    def step(cache, tokens, positions):
        hidden, cache = model.hidden(params, tokens, positions, cache=cache)
        return model.logits(params, hidden), cache

    # The rows have prompts of 9 and 6 tokens; what pads the second is overwritten.
    begins = np.array([9, 6])
    positions = np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9))
    prompt = np.where(positions < begins[:, None], tokens[:, :9], 96).astype(np.int32)
    logits, cache = step(cache, prompt, positions)
    full = families.logits(theirs, tokens)
    assert distance(logits[0], full[0, :9]) < 1e-5
    assert distance(logits[1, :6], full[1, :6]) < 1e-5
    for n in range(7):
        at = (begins + n)[:, None].astype(np.int32)
        logits, cache = step(cache, np.take_along_axis(tokens, at, 1), at)
        assert distance(logits[:, 0], full[[0, 1], at[:, 0]]) < 1e-5


def equations(jaxpr):
    """Counts the equations of a program and of those inside it."""
    inner = [x for e in jaxpr.eqns for x in jax.tree.leaves(list(e.params.values()), is_leaf=bare)]
    return len(jaxpr.eqns) + sum(equations(getattr(x, "jaxpr", x)) for x in inner if bare(x))


def bare(x):
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def deeper(config, layers):
    sliding = (config.sliding * layers)[:layers]
    return dataclasses.replace(config, num_layers=layers, sliding=sliding)


def test_attention_that_jax_chooses(monkeypatch):
    """What trains where there is no CPU: the same numbers, with packing and windows."""
    config = Config(vocab_size=13, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8)
    config = dataclasses.replace(config, mlp_width=24, window=3, sliding=(True, False))
    params = make(config).init(jax.random.key(0))
    tokens = np.arange(24).reshape(2, 12) % 13
    segments = np.array([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3])
    positions = np.stack([np.r_[:5, :7], np.r_[:9, :3]])
    ours = run(dataclasses.replace(config, attention="own"))(params, tokens, positions, segments)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    theirs = run(config)(params, tokens, positions, segments)
    assert 0 < distance(ours[segments > 0], theirs[segments > 0]) < 1e-5


@pytest.fixture
def asked(monkeypatch):
    """The implementations that jax's attention is asked for; XLA's computes."""
    found, attention = [], jax.nn.dot_product_attention

    def record(*args, implementation, **options):
        found.append(implementation)
        return attention(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    return found


@pytest.mark.parametrize(
    "fields, dtype, length, wanted",
    [
        ({}, "bfloat16", 4, ["cudnn"]),
        ({}, "float16", 4, ["cudnn"]),
        ({"head_dim": 128}, "bfloat16", 4, ["cudnn"]),
        ({"attention": "cudnn"}, "bfloat16", 5, ["cudnn"]),
        ({}, "float32", 4, [None]),
        ({}, "bfloat16", 5, [None]),
        ({"head_dim": 12}, "bfloat16", 4, [None]),
        ({"head_dim": 136}, "bfloat16", 4, [None]),
        ({"attention_softcap": 50.0}, "bfloat16", 4, []),
        ({"attention": "own"}, "bfloat16", 4, []),
    ],
)
def test_attention_of_a_gpu(fields, dtype, length, wanted, asked, monkeypatch):
    model = make(Config(num_layers=1, **fields))
    tokens = jnp.zeros((1, length), int)

    def hidden():
        params = model.init(jax.random.key(0))
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        cache = init_cache(model.config, 1, length, dtype)
        model.hidden(params, tokens, tokens, cache=cache)
        assert not asked
        model.hidden(params, tokens)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.eval_shape(hidden)
    assert asked == wanted


@pytest.mark.parametrize("backend, wanted", [("cpu", []), ("tpu", [None])])
def test_attention_where_there_is_no_gpu(backend, wanted, asked, monkeypatch):
    model = make(Config(num_layers=1))
    params = jax.eval_shape(model.init, jax.random.key(0))
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    jax.eval_shape(model.hidden, half, jnp.zeros((1, 4), int))
    assert asked == wanted


def test_the_program_does_not_grow_with_depth(family):
    config = family[1]
    counts = []
    for layers in (2, 20):
        model = make(deeper(config, layers))
        params = jax.eval_shape(model.init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)

        def loss(params, tokens, model=model):
            return jnp.sum(model.logits(params, model.hidden(params, tokens)[0]))

        program = jax.make_jaxpr(jax.value_and_grad(loss))(params, tokens)
        counts.append(equations(program.jaxpr))
    assert counts[0] == counts[1] > 50


def test_remat_gives_equal_gradients_for_less_memory():
    base = Config(vocab_size=64, num_layers=8, width=64, num_heads=4, head_dim=16, mlp_width=256)
    params = jax.jit(make(base).init)(jax.random.key(0))
    tokens = jnp.asarray(families.tokens(4, 64, vocab_size=64))
    found, memory = {}, {}
    for remat in ("none", "dots", "full"):
        model = make(dataclasses.replace(base, remat=remat))

        def loss(params, model=model):
            hidden = model.hidden(params, tokens)[0]
            return jnp.mean(jnp.square(hidden) * jnp.arange(64.0)[None, None])

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        found[remat] = compiled(params)
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
    for remat in ("dots", "full"):
        for x, y in zip(jax.tree.leaves(found[remat]), jax.tree.leaves(found["none"]), strict=True):
            assert distance(x, y) < 1e-5, remat
    assert memory["full"] < memory["dots"] < memory["none"], memory


def test_bfloat16_computes_in_it_and_keeps_what_must_be_precise(family):
    _, config, params = family
    tokens = families.tokens()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    hidden = jax.eval_shape(lambda p: make(config).hidden(p, tokens)[0], half)
    logits = run(config)(half, tokens)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert distance(logits, run(config)(rounded, tokens)) < 0.06


def test_frequencies_of_llama_3_1():
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    fields = families.LLAMA3_ROPE | {"rope_theta": 5e5, "original_max_position_embeddings": 8192}
    config = transformers.LlamaConfig(
        head_dim=128, max_position_embeddings=131_072, rope_parameters=fields
    )
    rope = Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192)
    theirs = LlamaRotaryEmbedding(config).inv_freq.numpy()
    np.testing.assert_allclose(frequencies(rope, 128), theirs, rtol=1e-6)


def test_a_fresh_model_knows_nothing():
    config = Config(vocab_size=64, tied=False)
    params = jax.jit(make(config).init)(jax.random.key(0))
    tokens = families.tokens(8, 32, vocab_size=64)
    logits = run(config)(params, tokens)
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)
    assert float(jnp.mean(entropy)) > 0.85 * np.log(64)
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (4, 128, 384)
    np.testing.assert_allclose(kernel.std((1, 2)), 128**-0.5, rtol=0.05)
    assert not np.allclose(kernel[0], kernel[1])


def test_score_head():
    config = Config(width=16)
    head = init_score_head(jax.random.key(0), config)
    hidden = jax.random.normal(jax.random.key(1), (2, 5, 16))
    head = {**head, "bias": jnp.float32(0.5)}
    ours = jax.jit(scores)(head, hidden)
    theirs = np.asarray(hidden, np.float64) @ np.asarray(head["kernel"], np.float64) + 0.5
    assert ours.shape == (2, 5) and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), head)
    assert scores(half, hidden.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attention": "cudnn", "attention_softcap": 50.0}, "'cudnn' knows no attention_softcap"),
        ({"attention": "flash"}, "config.attention must be one of auto, own, cudnn"),
        ({"remat": "some"}, "config.remat must be one of none, dots, full"),
        ({"activation": "relu"}, "config.activation must be one of silu, gelu_tanh"),
        ({"num_heads": 5}, "num_kv_heads=2 must divide num_heads=5"),
        ({"head_dim": 7}, "config.head_dim must be even"),
        ({"width": 0}, "config.width must be at least 1"),
        ({"sliding": (True,), "window": 4}, "config.sliding names 1 layers, but num_layers=4"),
        ({"sliding": (True,) * 4}, "config.window must be given"),
        ({"rope": {"scaling": "yarn"}}, "config.rope.scaling must be one of none, linear, llama3"),
        ({"local_rope": {"factor": 0.0}}, "config.local_rope.factor must be positive, got 0.0"),
    ],
)
def test_what_does_not_fit_is_named(fields, message):
    # Type checks, which the tests have and users have not, would refuse most of these.
    ropes = {name: forced(Rope(), x) for name, x in fields.items() if isinstance(x, dict)}
    with pytest.raises(ValueError, match=message):
        make(forced(Config(), fields | ropes))


def forced(config, fields):
    for name, x in fields.items():
        object.__setattr__(config, name, x)
    return config


def test_a_cache_needs_positions_and_no_segments():
    model, config = make(Config()), Config()
    params, tokens = model.init(jax.random.key(0)), jnp.zeros((1, 2), int)
    cache = init_cache(config, 1, 4)
    with pytest.raises(ValueError, match="positions_BxL must be given"):
        model.hidden(params, tokens, cache=cache)
    with pytest.raises(ValueError, match="segment_ids_BxL must be None"):
        model.hidden(params, tokens, tokens, tokens, cache)
