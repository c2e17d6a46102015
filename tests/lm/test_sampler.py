"""The sampler against the trainer's log-probs, itself in other slots and a schedule by hand."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl.lm import generation, log_probs, requests, sampler, transformer
from jrl.lm.config import Config
from jrl.lm.generation import generate
from jrl.lm.requests import Settings

VOCAB = 50
KEY = jax.random.key(7)
MODEL = transformer.make(
    Config(
        vocab_size=VOCAB, num_layers=2, width=24, head_dim=12, num_heads=2, num_kv_heads=1,
        mlp_width=32, qk_norm=True, window=9, sliding=(True, False), final_softcap=10.0,
    )
)  # fmt: skip
MIXED = [
    Settings(12, temperature=0.0),
    Settings(30, temperature=1.0),
    Settings(9, temperature=0.7, top_k=10),
    Settings(1, temperature=1.5),
    Settings(25, temperature=1.2, top_p=0.8, stop_ids=(3, 4, 5, 6, 7)),
    Settings(17, temperature=0.9, min_p=0.1, stop_ids=tuple(range(8, 16))),
    Settings(20, temperature=1.3, top_k=30, top_p=0.9, min_p=0.02),
]


@pytest.fixture(scope="module")
def params():
    """Weights large enough for the next token to be no toss-up."""
    return jax.tree.map(lambda x: x * (2.5 if x.ndim > 1 else 1.0), MODEL.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def few():
    """Three slots; prompts are padded to 8 or to the whole cache."""
    return sampler.make(MODEL, sampler.Config(slots=3, length=48, queue=8, buckets=(8,), chunk=5))


@pytest.fixture(scope="module")
def many():
    """Other numbers of everything, and layers that are scanned over."""
    config = sampler.Config(slots=5, length=64, queue=32, buckets=(), unroll=False)
    return sampler.make(MODEL, config)


def make_prompts(n, seed=0, longest=17):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, rng.integers(1, longest + 1)).tolist() for _ in range(n)]


def pack(with_, prompts, settings, ids):
    c = with_.config
    return requests.pack(prompts, settings, ids, c.queue, c.length, c.stops)


def same(a, b, atol=2e-5):
    assert a.request == b.request and a.finish == b.finish
    np.testing.assert_array_equal(a.tokens, b.tokens)
    for name in ("log_probs", "tempered_log_probs", "raw_log_probs"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol)


@jax.jit
def next_log_probs(params, tokens_BxL, temperature):
    hidden, _ = MODEL.hidden(params, tokens_BxL)
    head, softcap = MODEL.head(params), MODEL.config.final_softcap
    found = log_probs.next_token_log_probs(hidden, head, tokens_BxL, temperature, softcap)
    return found.log_probs_BxL


def trainer(params, prompt, completion, temperature=1.0):
    """Log-probs of the completion's tokens as a trainer computes them, without a cache."""
    tokens = np.zeros((1, 64), np.int32)
    end = len(prompt) + len(completion)
    tokens[0, :end] = [*prompt, *completion]
    return np.asarray(next_log_probs(params, tokens, temperature))[0, len(prompt) : end]


def test_completions_do_not_depend_on_slots_neighbours_or_order(params, few, many):
    settings, prompts = MIXED * 3, make_prompts(len(MIXED) * 3)
    first = generate(few, params, prompts, KEY, settings)  # more than fit into its queue
    assert [x.request for x in first] == list(range(len(prompts)))
    for a, b in zip(first, generate(many, params, prompts, KEY, settings), strict=True):
        same(a, b)
    order = np.random.default_rng(1).permutation(len(prompts)).tolist()
    shuffled = pack(many, [prompts[i] for i in order], [settings[i] for i in order], order)
    state = many.submit(many.init(KEY), shuffled)
    state = many.advance(params, state, np.int32(0), sampler.FOREVER)
    _, completions = generation.collect(many, state)
    assert [x.request for x in completions] == order
    for completion in completions:
        same(first[completion.request], completion)
    alone = pack(many, [prompts[9]], [settings[9]], [9])
    state = many.advance(params, many.submit(many.init(KEY), alone), np.int32(0), np.int32(99))
    same(generation.collect(many, state)[1][0], first[9])


def test_keys_make_the_difference(params, many):
    settings = Settings(20)
    same_prompt = [[1, 2, 3]] * 4
    first = generate(many, params, same_prompt, KEY, settings)
    assert len({tuple(x.tokens.tolist()) for x in first}) == 4
    for a, b in zip(first, generate(many, params, same_prompt, KEY, settings), strict=True):
        same(a, b)
    other = generate(many, params, same_prompt, jax.random.key(8), settings)
    assert all(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(first, other, strict=True))


def test_log_probs_are_the_trainers(params, many):
    prompts = make_prompts(len(MIXED))
    worst = 0.0
    for prompt, settings, found in zip(
        prompts, MIXED, generate(many, params, prompts, KEY, MIXED), strict=True
    ):
        raw = trainer(params, prompt, found.tokens)
        worst = max(worst, np.abs(found.raw_log_probs - raw).max())
        if settings.temperature:
            tempered = trainer(params, prompt, found.tokens, settings.temperature)
            worst = max(worst, np.abs(found.tempered_log_probs - tempered).max())
            # What filters leave is drawn more often than the model says.
            assert (found.log_probs >= found.tempered_log_probs - 1e-6).all()
        if settings == Settings(30):
            np.testing.assert_allclose(found.log_probs, found.raw_log_probs, atol=1e-6)
        assert found.tokens.dtype == np.int32 and found.log_probs.dtype == np.float32
    print(f"sampler and trainer: {worst:.1e}")
    assert worst < 1e-5


def test_log_probs_are_the_trainers_in_half_precision(params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    config = sampler.Config(slots=4, length=64, queue=4, buckets=(), dtype="bfloat16")
    prompts = make_prompts(4)
    out = generate(sampler.make(MODEL, config), half, prompts, KEY, Settings(40))
    ours = np.concatenate([x.raw_log_probs for x in out])
    theirs = [trainer(half, prompt, x.tokens) for prompt, x in zip(prompts, out, strict=True)]
    metrics = generation.mismatch(
        jnp.asarray(ours), jnp.asarray(np.concatenate(theirs)), jnp.ones(len(ours), bool)
    )
    worst, k3 = (float(s / w) for s, w in metrics.values())
    print(f"half precision: {worst:.1e}, k3 {k3:.1e}")
    assert worst < 0.05 and k3 < 1e-4


def test_mismatch_is_what_it_says():
    ours, theirs = np.log([0.5, 0.2, 0.9]), np.log([0.4, 0.3, 0.1])
    found = jax.jit(generation.mismatch)(
        jnp.float32(ours), jnp.float32(theirs), jnp.array([True, True, False])
    )
    np.testing.assert_allclose(found["sampler_gap"], (np.log(1.5), 1.0), rtol=1e-6)
    k3 = [0.8 - 1 - np.log(0.8), 1.5 - 1 - np.log(1.5)]
    np.testing.assert_allclose(found["sampler_k3"], (sum(k3), 2.0), rtol=1e-5)


def test_stops_keep_their_token_and_lengths_are_kept(params, many):
    free = generate(many, params, [[1, 2]], KEY, Settings(40))[0]
    stops = (int(free.tokens[11]), int(free.tokens[20]))
    begin = min(free.tokens.tolist().index(x) for x in stops)
    (cut,) = generate(many, params, [[1, 2]], KEY, Settings(40, stop_ids=stops))
    assert cut.tokens.tolist() == free.tokens[: begin + 1].tolist() and cut.finish == "stop"
    (cut,) = generate(many, params, [[1, 2]], KEY, Settings(begin, stop_ids=stops))
    assert cut.tokens.tolist() == free.tokens[:begin].tolist() and cut.finish == "length"
    # A stop id as the last token that is allowed is a stop.
    (cut,) = generate(many, params, [[1, 2]], KEY, Settings(begin + 1, stop_ids=stops))
    assert cut.finish == "stop"
    prompt = make_prompts(1, longest=1)[0]
    (whole,) = generate(many, params, [prompt], KEY, Settings(63))
    assert len(whole.tokens) == 63


def test_a_free_slot_is_taken_at_once(params, few):
    lengths = [30, 4, 7, 1, 12, 3, 9, 2]
    prompts = make_prompts(len(lengths))
    settings = [Settings(n) for n in lengths]
    state = few.submit(few.init(KEY), pack(few, prompts, settings, range(8)))
    state = few.advance(params, state, np.int32(0), sampler.FOREVER)
    busy = [0, 0, 0]
    for n in lengths:  # the first slot to be free takes the next request
        busy[busy.index(min(busy))] += n
    assert int(state.steps) == max(busy) == 30


def test_versions_and_new_weights_in_the_middle(params, many):
    new = jax.tree.map(lambda x: 1.1 * x, params)
    prompts, settings = make_prompts(7, seed=3), Settings(20, temperature=0.0)
    packed = pack(many, prompts, [settings] * 7, range(7))
    state = many.submit(many.init(KEY), packed)
    state = many.advance(params, state, np.int32(4), np.int32(6))
    state = many.advance(new, many.refresh(state), np.int32(5), sampler.FOREVER)
    _, found = generation.collect(many, state)
    assert [x.request for x in found] == list(range(7))
    for prompt, completion in zip(prompts, found, strict=True):
        old = 6 if completion.request < many.config.slots else 0
        assert completion.versions.tolist() == [4] * old + [5] * (20 - old)
        so_far = completion.tokens[:old].tolist()
        (rest,) = generate(many, new, [prompt + so_far], KEY, Settings(20 - old, temperature=0.0))
        assert completion.tokens[old:].tolist() == rest.tokens.tolist()
        np.testing.assert_allclose(completion.raw_log_probs[old:], rest.raw_log_probs, atol=2e-5)
        expected = trainer(params, prompt, completion.tokens)[:old]
        np.testing.assert_allclose(completion.raw_log_probs[:old], expected, atol=1e-5)


def test_interruptions_alone_change_nothing(params, many):
    prompts = make_prompts(len(MIXED))
    state = many.submit(many.init(KEY), pack(many, prompts, MIXED, range(len(MIXED))))
    found = []
    for steps in (0, 1, 7, 2, 30, 30):
        state = many.advance(params, state, np.int32(0), np.int32(steps))
        state, completions = generation.collect(many, state)
        found += completions
        state = many.refresh(state)
    expected = generate(many, params, prompts, KEY, MIXED)
    for a, b in zip(sorted(found, key=lambda x: x.request), expected, strict=True):
        same(a, b, atol=5e-5)


def test_streams(params, many):
    prompt, settings = [5, 6, 7], Settings(22)
    parts = list(generation.stream(many, params, prompt, KEY, settings, every=8))
    assert [len(x.tokens) for x in parts] == [8, 16, 22]
    assert [x.finish for x in parts] == ["", "", "length"]
    (whole,) = generate(many, params, [prompt], KEY, settings)
    same(parts[-1], whole)
    assert parts[0].tokens.tolist() == whole.tokens[:8].tolist()
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        next(generation.stream(many, params, prompt, KEY, settings, every=0))


def test_nothing_compiles_after_the_first_call(params, few, caplog):
    generate(few, params, make_prompts(9), KEY, MIXED[:1] * 9)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        for n, seed in ((1, 0), (20, 1), (3, 2), (8, 3), (0, 4)):
            settings = [MIXED[(i + seed) % len(MIXED)] for i in range(n)]
            keys = jax.random.wrap_key_data(np.array([seed, 7], np.uint32))
            assert len(generate(few, params, make_prompts(n, seed), keys, settings, n)) == n
        assert not [x.getMessage() for x in caplog.records if "ompil" in x.getMessage()]
        jax.jit(lambda x: x + 1)(np.float32(1))
        assert [x for x in caplog.records if "ompil" in x.getMessage()]  # it would be seen


@pytest.mark.parametrize("kind", ["few", "many"])
def test_the_cache_is_never_copied(params, kind, request):
    with_ = request.getfixturevalue(kind)
    state = with_.init(KEY)
    shape = jax.tree.leaves(state.cache)[0].shape
    text = with_.advance.lower(params, state, np.int32(0), np.int32(1)).compile().as_text()
    found = re.findall(rf"= f32\[{','.join(map(str, shape))}\]\S* copy\(%?(\S+)\)", text)
    # The one that a prompt is run with may be made by a copy.
    assert not [x for x in found if "broadcast" not in x], found


def test_what_is_passed_in_can_be_used_again(params, many):
    key = jax.random.key(3)
    for _ in range(2):
        generate(many, params, [[1]], key, Settings(2))
    assert not key.is_deleted() and not any(x.is_deleted() for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], []], {}, "prompts[1]: empty, begin it with a token"),
        ([[1] * 64], {}, "prompts[0]: 64 tokens leave no room in the cache of length=64"),
        ([[1] * 60], {}, "60 tokens and max_new_tokens=5 do not fit into the cache of length=64"),
        ([[1, 50]], {}, "prompts[0]: token id 50 is outside the vocabulary of 50"),
        ([[-1]], {}, "token id -1 is outside the vocabulary of 50"),
        ([[0.5]], {}, "must be integer token ids, got float64"),
        ([[[1, 2]]], {}, "must be a list of token ids, got an array of shape (1, 2)"),
        ([[1]], {"max_new_tokens": 0}, "settings.max_new_tokens must be at least 1, got 0"),
        ([[1]], {"temperature": -1.0}, "settings.temperature must be at least 0"),
        ([[1]], {"temperature": float("nan")}, "settings.temperature must be at least 0"),
        ([[1]], {"top_k": -1}, "settings.top_k must be at least 0 (0 for all tokens), got -1"),
        ([[1]], {"top_p": 0.0}, "settings.top_p must be above 0 and at most 1"),
        ([[1]], {"top_p": 1.5}, "settings.top_p must be above 0 and at most 1"),
        ([[1]], {"min_p": 1.5}, "settings.min_p must be between 0 and 1"),
        ([[1]], {"stop_ids": (50,)}, "settings.stop_ids has 50, outside the vocabulary of 50"),
        ([[1]], {"stop_ids": tuple(range(9))}, "settings.stop_ids must be at most 8, config.stops"),
    ],
)
def test_bad_requests_are_refused_in_one_line(params, many, prompts, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        generate(many, params, prompts, KEY, Settings(**({"max_new_tokens": 5} | settings)))
    assert "\n" not in str(error.value)


def test_settings_are_one_or_as_many_as_prompts(params, many):
    with pytest.raises(ValueError, match="settings must be one or 2 like prompts, got 1"):
        generate(many, params, [[1], [2]], KEY, [Settings()])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"slots": 0}, "config.slots must be at least 1, got 0"),
        ({"queue": 4}, "config.queue=4 must be at least slots=16"),
        ({"buckets": (0, 8)}, "config.buckets must be at least 1, got 0"),
        ({"dtype": "int8"}, "config.dtype must be float32 or bfloat16, got 'int8'"),
    ],
)
def test_bad_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler.make(MODEL, sampler.Config(**sizes))
