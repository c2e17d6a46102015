"""Token log-probabilities in parts against the naive form, NumPy in float64 and differences."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from jrl.lm.log_probs import next_token_log_probs, token_log_probs

CASES = {
    "plain": ((2, 5, 8, 24), 8, 1.0, None),
    "a prime vocabulary": ((1, 7, 6, 23), 5, 0.7, None),
    "one part": ((3, 1, 4, 10), 64, 1.9, 2.0),
    "a divisor near": ((2, 4, 8, 21), 6, 1.0, 3.0),
    "single columns": ((2, 3, 4, 7), 1, 0.7, None),
    "all together": ((2, 4, 8, 29), 12, 1.9, 2.0),
}
"""Shape [B, L, D, V], chunk, temperature and cap."""

wrong = (ValueError, TypeCheckError)


def arrays(b, length, d, v, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(b, length, d)).astype(dtype)
    head = rng.normal(size=(v, d)).astype(dtype)
    return jnp.asarray(hidden), jnp.asarray(head), jnp.asarray(rng.integers(0, v, (b, length)))


def cotangents(shape, seed=1):
    a, b = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    return jnp.asarray(a), jnp.asarray(b)


def numpy_form(hidden, head, targets, temperature, softcap):
    """Token by token in float64."""
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    log_probs, entropies = np.empty(targets.shape), np.empty(targets.shape)
    for at in np.ndindex(targets.shape):
        z = head @ hidden[at]
        if softcap is not None:
            z = softcap * np.tanh(z / softcap)
        z = z / float(temperature)
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        log_probs[at] = log_p[targets[at]]
        entropies[at] = -np.sum(np.exp(log_p) * log_p)
    return log_probs, entropies


def naive(hidden, head, targets, temperature=1.0, softcap=None):
    """All logits at once, differentiated by jax."""
    logits = jnp.einsum("bld,vd->blv", hidden, head)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    log_p = jax.nn.log_softmax(logits / temperature)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def gradients(f, hidden, head, targets, temperature, **settings):
    """Gradients of a fixed random combination of both results."""
    a, b = cotangents(targets.shape)

    def total(hidden, head, temperature):
        log_probs, entropies = f(hidden, head, targets, temperature, **settings)
        return jnp.sum(a * log_probs + b * entropies)

    return jax.jit(jax.grad(total, (0, 1, 2)))(hidden, head, temperature)


def float64_gradients(hidden, head, targets, temperature, **settings):
    """The judge of float32 gradients: the naive form in float64."""
    with jax.enable_x64():
        wide = (jnp.asarray(np.asarray(x), jnp.float64) for x in (hidden, head))
        return gradients(naive, *wide, targets, jnp.float64(temperature), **settings)


def near(actual, expected, relative=1e-6):
    """Compares with the largest number of each array as the unit."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        e = np.asarray(e, np.float64)
        distance = np.abs(np.asarray(a, np.float64) - e).max(initial=0.0)
        assert distance <= relative * np.abs(e).max(initial=0.0), distance


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_exact(case):
    shape, chunk, temperature, softcap = CASES[case]
    inputs = (*arrays(*shape), jnp.float32(temperature))
    f = functools.partial(token_log_probs, softcap=softcap, chunk=chunk)
    values = jax.jit(f)(*inputs)
    assert {x.dtype for x in values} == {jnp.dtype("float32")}
    near(values, numpy_form(*inputs, softcap))
    *ours, ours_temperature = gradients(f, *inputs)
    *exact, exact_temperature = float64_gradients(*inputs, softcap=softcap)
    near(ours, exact)
    # A sum over all tokens and columns in which most of it cancels.
    near([ours_temperature], [exact_temperature], relative=1e-5)


@pytest.mark.parametrize("result", [0, 1])
def test_gradients_are_differences_of_numpy(result):
    inputs, softcap, step = arrays(2, 3, 4, 11), 2.5, 1e-6
    targets = inputs[2]
    weights = np.asarray(cotangents(targets.shape)[0], np.float64)

    def total(hidden, head, temperature):
        return np.sum(weights * numpy_form(hidden, head, targets, temperature, softcap)[result])

    def ours(hidden, head, temperature):
        log_probs = token_log_probs(hidden, head, targets, temperature, softcap, chunk=4)
        return jnp.sum(jnp.asarray(weights, log_probs[result].dtype) * log_probs[result])

    point = [np.asarray(x, np.float64) for x in (*inputs[:2], 1.3)]
    grads = jax.jit(jax.grad(ours, (0, 1, 2)))(*(jnp.asarray(x, jnp.float32) for x in point))
    rng = np.random.default_rng(2)
    for i, grad in enumerate(grads):
        direction = rng.normal(size=point[i].shape)
        ends = [
            total(*(x + sign * step * direction if j == i else x for j, x in enumerate(point)))
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(np.asarray(grad) * direction), slope, rtol=2e-5)


def test_temperatures_do_not_recompile_and_may_be_a_population():
    inputs = arrays(2, 5, 8, 24)
    traces = []

    @jax.jit
    def f(temperature):
        traces.append(1)
        return token_log_probs(*inputs, temperature, chunk=7)

    for temperature in (0.5, 1.0, 2.0):
        near(f(jnp.float32(temperature)), numpy_form(*inputs, temperature, None))
    assert len(traces) == 1
    many = jax.jit(jax.vmap(f))(jnp.array([0.5, 2.0]))
    for i, temperature in enumerate((0.5, 2.0)):
        near((x[i] for x in many), numpy_form(*inputs, temperature, None))


def test_a_population_of_models():
    members = [arrays(2, 3, 8, 22, seed=s) for s in range(3)]
    stacked = [jnp.stack(x) for x in zip(*members, strict=True)]
    grad = functools.partial(gradients, token_log_probs, temperature=jnp.float32(0.8), chunk=4)
    together = jax.jit(jax.vmap(grad))(*stacked)
    for i, member in enumerate(members):
        near((x[i] for x in together), grad(*member))


def test_microbatches_in_a_scan_with_recomputation():
    hidden, head, targets = arrays(4, 6, 8, 23)
    a, b = cotangents((2, 6))

    def total(head):
        @jax.checkpoint
        def body(total, part):
            log_probs, entropies = token_log_probs(jnp.tanh(part[0]), head, part[1], chunk=5)
            return total + jnp.sum(a * log_probs + b * entropies), None

        parts = (hidden.reshape(2, 2, 6, 8), targets.reshape(2, 2, 6))
        return jax.lax.scan(body, jnp.float32(0), parts)[0]

    def at_once(head):
        log_probs, entropies = naive(jnp.tanh(hidden), head, targets)
        return jnp.sum(jnp.tile(a, (2, 1)) * log_probs + jnp.tile(b, (2, 1)) * entropies)

    near([jax.jit(jax.grad(total))(head)], [jax.jit(jax.grad(at_once))(head)], relative=3e-6)


@pytest.mark.parametrize("head_dtype", [jnp.bfloat16, jnp.float32])
def test_half_precision(head_dtype):
    hidden, head, targets = arrays(4, 32, 16, 100)
    hidden, head = hidden.astype(jnp.bfloat16), head.astype(head_dtype)
    temperature = jnp.float32(0.9)
    result = jax.jit(token_log_probs, static_argnames="chunk")(
        hidden, head, targets, temperature, chunk=20
    )
    # The products of rounded numbers are exact in float32, and so is everything behind them.
    assert {x.dtype for x in result} == {jnp.dtype("float32")}
    near(result, numpy_form(*(x.astype(jnp.float32) for x in (hidden, head)), targets, 0.9, None))
    grads = gradients(token_log_probs, hidden, head, targets, temperature, chunk=20)
    assert [x.dtype for x in grads] == [jnp.bfloat16, head_dtype, jnp.float32]
    wide = (x.astype(jnp.float32) for x in (hidden, head))
    near(grads, float64_gradients(*wide, targets, temperature), relative=2**-7)


def test_the_gradient_of_the_head_is_not_summed_in_half_precision():
    # 4096 equal tokens: in bfloat16 a sum of them stops growing after 256.
    hidden = jnp.ones((4, 1024, 1), jnp.bfloat16)
    head, targets = jnp.zeros((2, 1), jnp.bfloat16), jnp.zeros((4, 1024), int)

    def total(head):
        return jnp.sum(token_log_probs(hidden, head, targets, chunk=1).log_probs_BxL)

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(head), [[2048.0], [-2048.0]])


def test_extreme_logits():
    # One token takes all: its log-probability is 0 and the entropy is 0, not NaN.
    head = jnp.array([[1000.0], [-1000.0], [0.0]])
    hidden, targets = jnp.array([[[1.0], [-1.0], [1.0]]]), jnp.array([[0, 1, 1]])
    log_probs, entropies = jax.jit(token_log_probs, static_argnames="chunk")(
        hidden, head, targets, chunk=2
    )
    np.testing.assert_array_equal(log_probs, [[0.0, 0.0, -2000.0]])
    np.testing.assert_array_equal(entropies, [[0.0, 0.0, 0.0]])
    # All logits far below zero, and a part that is not full.
    grads = gradients(token_log_probs, hidden, head - 2000, targets, jnp.float32(1), chunk=2)
    assert all(np.isfinite(x).all() for x in grads)


def test_tokens_outside_the_vocabulary_are_nan_and_push_nothing():
    hidden, head, _ = arrays(1, 3, 4, 7)
    targets = jnp.array([[-1, 7, 3]])

    def total(head):
        log_probs, _ = token_log_probs(hidden, head, targets, chunk=3)
        return jnp.sum(jnp.where(targets == 3, log_probs, 0)), log_probs

    grad, log_probs = jax.jit(jax.grad(total, has_aux=True))(head)
    np.testing.assert_array_equal(np.isnan(log_probs), [[True, True, False]])
    alone = jax.grad(lambda w: naive(hidden[:, 2:], w, targets[:, 2:])[0].sum())(head)
    near([grad], [alone])


@pytest.mark.parametrize("length", [1, 2, 6])
def test_next_tokens_stand_in_their_own_places(length):
    hidden, head, tokens = arrays(2, length, 8, 21)
    result = jax.jit(next_token_log_probs)(hidden, head, tokens, 0.7)
    for ours, theirs in zip(
        result, numpy_form(hidden[:, :-1], head, tokens[:, 1:], 0.7, None), strict=True
    ):
        np.testing.assert_array_equal(ours[:, 0], 0.0)
        near([ours[:, 1:]], [theirs])


def test_memory_is_a_small_part_of_the_naive_forms():
    shape = (4, 64, 16, 16_384)
    temporary = {}
    for name, f in {
        "naive": naive,
        "parts": functools.partial(token_log_probs, chunk=1024),
        "parts that do not divide": functools.partial(token_log_probs, chunk=1000),
    }.items():
        # A vocabulary that 1000 columns do not divide costs copies of the (small) head.
        grad = functools.partial(gradients, f, temperature=jnp.float32(1))
        program = jax.jit(grad).lower(*arrays(*shape)).compile()
        temporary[name] = program.memory_analysis().temp_size_in_bytes
    logits = 4 * np.prod([shape[0], shape[1], shape[3]])
    assert temporary["naive"] >= logits
    assert temporary["parts"] <= temporary["naive"] / 8
    assert temporary["parts that do not divide"] <= temporary["naive"] / 4


def test_a_sharded_batch_and_vocabulary():
    kinds = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=kinds)
    spec, place = jax.sharding.PartitionSpec, functools.partial(jax.sharding.NamedSharding, mesh)
    shardings = [place(spec("data")), place(spec("model", "data")), place(spec("data"))]
    inputs = arrays(8, 16, 16, 64)
    spread = [jax.device_put(x, s) for x, s in zip(inputs, shardings, strict=True)]
    grad = functools.partial(gradients, token_log_probs, temperature=jnp.float32(1), chunk=16)
    near(grad(*spread), grad(*inputs), relative=2e-6)
    program = jax.jit(grad).lower(*spread).compile()
    text = program.as_text()
    assert "f32[64," not in text, "the whole head is gathered"
    assert "f32[8,16,16]" not in text and "f32[128,16]" not in text, "the states are gathered"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"targets": jnp.zeros((3, 2), int)}, "tokens must be"),
        ({"head": jnp.zeros((7, 5))}, "head must be"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"softcap": -1.0}, "softcap must be positive, got -1.0"),
        ({"chunk": 0}, "chunk must be positive, got 0"),
    ],
)
def test_wrong_arguments_get_one_line(change, message):
    hidden, head, targets = arrays(2, 3, 4, 7)
    arguments = {"temperature": 1.0, "softcap": None, "chunk": 4, **change}
    head, targets = arguments.pop("head", head), arguments.pop("targets", targets)
    for f in (token_log_probs, next_token_log_probs):
        # Outside the tests nobody checks the annotations.
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(f)(hidden, head, targets, **arguments)
        with pytest.raises(wrong):
            f(hidden, head, targets, **arguments)
