"""The training step: its gradient, its promises, and everything that is done to it from outside."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jrl import metrics, train, tree
from jrl.train import Loss

KEY = jax.random.key(0)
N, D = 24, 3


def batch(n=N, weight=None, seed=0):
    """A regression problem: features x [n, D], target y [n], weight w [n]."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, D)), rng.normal(size=n)
    w = np.ones(n) if weight is None else weight
    return jax.tree.map(jnp.float32, {"x": x, "y": y, "w": w})


def params(seed=1):
    rng = np.random.default_rng(seed)
    return {"w": jnp.float32(rng.normal(size=D)), "b": jnp.float32(rng.normal())}


def objective(p, extra, data, key, hp):
    """Weighted least squares, l = (x w + b - y)^2 / 2, with its errors as `aux`."""
    error = data["x"].astype(p["w"].dtype) @ p["w"] + p["b"] - data["y"]
    total = jnp.sum(data["w"] * error**2 / 2)
    weight = jnp.sum(data["w"])
    metrics = {"error": (jnp.sum(data["w"] * error), weight)}
    return Loss(total.astype(jnp.float32), weight, metrics, {"error": error})


def noisy(p, extra, data, key, hp):
    """The objective above with targets disturbed by the key."""
    noise = jax.random.normal(key, data["y"].shape)
    return objective(p, extra, {**data, "y": data["y"] + noise}, key, hp)


def sgd(hp):
    return optax.sgd(hp)


def adam(hp):
    return optax.adam(hp)


def make(hp=0.1, optimizer=sgd, objective=objective, extra=(), microbatches=1, **options):
    """Returns (train_step, state)."""
    grad_fn = train.gradient(objective, microbatches)
    step = train.make_train_step(grad_fn, optimizer, **options)
    return step, train.init(KEY, params(), optimizer, jnp.float32(hp), extra)


def numpy_gradient(p, data):
    """The same gradient by hand, in float64: sum_i w_i e_i (x_i, 1) / sum_i w_i."""
    x, y, w, weights, b = (np.float64(a) for a in (data["x"], data["y"], data["w"], p["w"], p["b"]))
    error = x @ weights + b - y
    return {"w": (w * error) @ x / w.sum(), "b": (w * error).sum() / w.sum()}


def close(actual, expected, rtol=1e-5, atol=1e-6):
    chex.assert_trees_all_close(tree_of_data(actual), tree_of_data(expected), rtol=rtol, atol=atol)


def tree_of_data(x):
    """Keys as numbers, which assertions can compare."""

    def one(leaf):
        typed = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if typed else leaf

    return jax.tree.map(one, x)


def equal(actual, expected):
    chex.assert_trees_all_equal(tree_of_data(actual), tree_of_data(expected))


# --- the gradient ---


@pytest.mark.parametrize("microbatches", [1, 2, 4, 24])
def test_gradient_is_that_of_the_closed_form(microbatches):
    data = batch(weight=np.random.default_rng(2).uniform(0, 2, N))
    grad_fn = jax.jit(train.gradient(objective, microbatches))
    grads, loss = grad_fn(params(), (), data, KEY, 0.0)
    close(grads, numpy_gradient(params(), data))
    p = params()
    error = data["x"] @ p["w"] + p["b"] - data["y"]
    np.testing.assert_allclose(loss.weight, data["w"].sum(), rtol=1e-6)
    np.testing.assert_allclose(loss.mean, (data["w"] * error**2).sum() / 2 / loss.weight, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["error"][0], (data["w"] * error).sum(), atol=1e-4)
    # aux comes back in the order of the examples, however they were split.
    np.testing.assert_allclose(loss.aux["error"], error, rtol=1e-5, atol=1e-6)


def test_gradient_is_that_of_finite_differences():
    data, eps = batch(), 1e-6
    with jax.enable_x64():
        data, p = jax.tree.map(jnp.float64, (data, params()))

        def wide(p, extra, data, key, hp):
            error = data["x"] @ p["w"] + p["b"] - data["y"]
            return Loss(jnp.sum(jnp.cosh(error)), jnp.float64(error.size))

        grads, _ = train.gradient(wide, 4)(p, (), data, KEY, 0.0)
        for i in range(D):
            up, down = (
                wide({**p, "w": p["w"].at[i].add(d)}, (), data, KEY, 0.0).mean for d in (eps, -eps)
            )
            np.testing.assert_allclose(grads["w"][i], (up - down) / (2 * eps), rtol=1e-6)


def test_padding_equals_truncation():
    data = batch()
    padded = jax.tree.map(lambda x: x.at[18:].set(7.0), data)
    padded["w"] = data["w"].at[18:].set(0.0)
    short = tree.take(data, slice(0, 18))
    for microbatches in (1, 2, 3):  # of the padded batch; 24 / 3 leaves parts unevenly full
        grads, loss = train.gradient(objective, microbatches)(params(), (), padded, KEY, 0.0)
        expected, expected_loss = train.gradient(objective)(params(), (), short, KEY, 0.0)
        close(grads, expected)
        np.testing.assert_allclose(loss.mean, expected_loss.mean, rtol=1e-6)


def test_ragged_microbatches_are_not_a_mean_of_means():
    weight = np.r_[np.ones(13), np.zeros(11)]
    data = batch(weight=weight)
    one, _ = train.gradient(objective, 1)(params(), (), data, KEY, 0.0)
    four, _ = train.gradient(objective, 4)(params(), (), data, KEY, 0.0)
    close(four, one)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_an_empty_batch_has_no_gradient(microbatches):
    step, state = make(microbatches=microbatches)
    new, loss = jax.jit(step)(state, batch(weight=np.zeros(N)), jnp.float32(0.1))
    equal(new.params, state.params)
    assert float(loss.mean) == 0.0 and float(loss.metrics["skipped"][0]) == 0.0
    assert all(bool(jnp.isfinite(s)) for s, _ in loss.metrics.values())


def test_compute_dtype_reaches_the_objective_and_not_the_gradient():
    seen = []

    def spying(p, extra, data, key, hp):
        seen.append(p["w"].dtype)
        return objective(p, extra, data, key, hp)

    data = batch()
    half, _ = train.gradient(spying, 4, jnp.bfloat16)(params(), (), data, KEY, 0.0)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.float32)}
    close(half, train.gradient(objective)(params(), (), data, KEY, 0.0)[0], rtol=0.05, atol=0.02)


def test_microbatches_must_divide():
    with pytest.raises(ValueError, match="microbatches=5 does not divide the batch of 24"):
        train.gradient(objective, 5)(params(), (), batch(), KEY, 0.0)
    with pytest.raises(ValueError, match="microbatches must be at least 1, got 0"):
        train.gradient(objective, 0)


def test_every_microbatch_has_its_own_key():
    def objective(p, extra, data, key, hp):
        draw = jnp.broadcast_to(jax.random.uniform(key), data["y"].shape)
        return Loss(jnp.sum(p["w"]), jnp.float32(1), {}, draw)

    _, loss = train.gradient(objective, 4)(params(), (), batch(), KEY, 0.0)
    assert len(np.unique(loss.aux)) == 4


# --- the step ---


def test_step_is_one_of_gradient_descent():
    step, state = make()
    data = batch()
    new, loss = jax.jit(step)(state, data, jnp.float32(0.1))
    expected = numpy_gradient(params(), data)
    close(new.params, jax.tree.map(lambda p, g: p - 0.1 * g, params(), expected))
    norm = np.sqrt((expected["w"] ** 2).sum() + expected["b"] ** 2)
    np.testing.assert_allclose(loss.metrics["grad_norm"][0], norm, rtol=1e-5)
    np.testing.assert_allclose(loss.metrics["loss"][0] / N, loss.mean, rtol=1e-6)
    assert int(new.step) == 1


def test_vmap_over_learning_rates_equals_separate_runs():
    rates = jnp.float32([0.001, 0.01, 0.1])
    step = make(optimizer=adam)[0]
    state = train.init(KEY, params(), adam, jnp.float32(0.1))

    def run(state, rate):
        return jax.lax.scan(lambda s, x: step(s, x, rate), state, batches)[0]

    batches = jax.tree.map(lambda *x: jnp.stack(x), *(batch(seed=i) for i in range(5)))
    together = jax.jit(jax.vmap(run, (None, 0)))(state, rates)
    for i, rate in enumerate(rates):
        close(tree.take(together.params, i), jax.jit(run)(state, rate).params)


def test_vmap_over_seeds_equals_separate_runs():
    step, _ = make(objective=noisy)
    keys = jax.random.split(KEY, 3)
    data, rate = batch(), jnp.float32(0.1)
    states = jax.vmap(lambda key: train.init(key, params(), sgd, rate))(keys)
    together, _ = jax.vmap(step, (0, None, None))(states, data, rate)
    assert len(np.unique(together.params["b"])) == 3
    for i in range(3):
        close(tree.take(together.params, i), step(tree.take(states, i), data, rate)[0].params)


def test_donation_works_when_the_target_aliases_the_parameters():
    p = params()
    state = train.init(KEY, p, adam, jnp.float32(0.1), extra={"target": p})
    step = train.make_train_step(train.gradient(objective), adam)
    donating = jax.jit(step, donate_argnums=0)
    old = state
    for _ in range(3):
        state, _ = donating(state, batch(), jnp.float32(0.1))
    assert old.params["w"].is_deleted() and not p["w"].is_deleted()
    equal(state.extra["target"], p)


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("field", ["x", "y", "w"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(field, microbatches):
    step, state = make(optimizer=adam, microbatches=microbatches)
    step, rate = jax.jit(step), jnp.float32(0.1)
    state, loss = step(state, batch(), rate)
    assert float(loss.metrics["skipped"][0]) == 0.0
    bad = batch()
    bad[field] = bad[field].at[(5,) + (0,) * (bad[field].ndim - 1)].set(jnp.nan)
    new, loss = step(state, bad, rate)
    assert int(new.step) == int(state.step) + 1
    equal(new.replace(step=state.step), state)
    assert tuple(map(float, loss.metrics["skipped"])) == (1.0, 1.0)
    for name in ("loss", "grad_norm", "error"):  # They weigh nothing, so no mean is spoilt.
        assert tuple(map(float, loss.metrics[name])) == (0.0, 0.0)


def test_an_infinite_gradient_of_a_finite_loss_is_skipped():
    def root(p, extra, data, key, hp):
        return Loss(jnp.sum(jnp.sqrt(p["w"] * 0)) + 0 * p["b"], jnp.float32(1))

    step, state = make(objective=root)
    new, loss = jax.jit(step)(state, batch(), jnp.float32(0.1))
    assert float(loss.total) == 0.0 and float(loss.metrics["skipped"][0]) == 1.0
    equal(new.params, state.params)


def test_skipping_can_be_turned_off():
    step, state = make(skip_nonfinite=False)
    bad = batch()
    bad["y"] = bad["y"].at[0].set(jnp.nan)
    new, loss = jax.jit(step)(state, bad, jnp.float32(0.1))
    assert bool(jnp.all(jnp.isnan(new.params["w"]))) and "skipped" not in loss.metrics


def test_after_moves_a_target_and_sees_the_errors():
    def after(state, loss, hp):
        target = optax.incremental_update(state.params, state.extra["target"], 0.25)
        return {"target": target, "largest": jnp.max(jnp.abs(loss.aux["error"]))}

    extra = {"target": params(7), "largest": jnp.float32(0)}
    step, state = make(extra=extra, after=after, microbatches=2)
    new, loss = jax.jit(step)(state, batch(), jnp.float32(0.1))
    expected = jax.tree.map(lambda p, t: 0.25 * p + 0.75 * t, new.params, params(7))
    close(new.extra["target"], expected)
    assert float(new.extra["largest"]) == float(jnp.max(jnp.abs(loss.aux["error"])))


def test_after_is_undone_when_the_step_is_skipped():
    step, state = make(extra=jnp.int32(0), after=lambda state, loss, hp: state.extra + 1)
    data = batch()
    state, _ = step(state, data, jnp.float32(0.1))
    state, _ = step(state, {**data, "y": data["y"] * jnp.nan}, jnp.float32(0.1))
    assert int(state.extra) == 1 and int(state.step) == 2


def test_the_optimizer_receives_value_and_aux():
    def update(updates, state, params=None, *, value, aux):
        return updates, {"value": value, "error": aux["error"]}

    def optimizer(hp):
        def init(params):
            return {"value": jnp.float32(0), "error": jnp.zeros(N)}

        return optax.chain(optax.GradientTransformationExtraArgs(init, update), optax.sgd(hp))

    step, state = make(optimizer=optimizer)
    new, loss = jax.jit(step)(state, batch(), jnp.float32(0.1))
    assert float(new.opt_state[0]["value"]) == float(loss.mean)
    equal(new.opt_state[0]["error"], loss.aux["error"])


def test_the_key_is_a_constant_root_and_a_resumed_step_draws_the_same():
    step, state = make(objective=noisy)
    step, rate = jax.jit(step), jnp.float32(0.1)
    states, errors = [state], []
    for _ in range(4):
        state, loss = step(state, batch(), rate)
        states.append(state)
        errors.append(np.asarray(loss.aux["error"]))
    equal(states[-1].key, states[0].key)
    assert len({float(e[0]) for e in errors}) == 4
    # Back from disk: other buffers, the same numbers.
    saved = jax.device_get(tree_of_data(states[2]))
    resumed = jax.tree.map(jnp.asarray, saved)
    resumed = resumed.replace(key=jax.random.wrap_key_data(resumed.key))
    for expected in errors[2:]:
        resumed, loss = step(resumed, batch(), rate)
        np.testing.assert_array_equal(loss.aux["error"], expected)
    equal(resumed, states[-1])


@pytest.mark.parametrize("microbatches", [1, 3])
def test_a_sharded_batch_gives_the_parameters_of_a_whole_one(microbatches):
    step, state = make(optimizer=adam, microbatches=microbatches)
    weight = np.random.default_rng(3).integers(0, 2, N)  # devices with unequal weights
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    step, rate = jax.jit(step), jnp.float32(0.01)
    sharded_state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    for seed in range(3):
        data = batch(weight=weight, seed=seed)
        sharded = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
        assert len(sharded["x"].sharding.device_set) == 8
        state, loss = step(state, data, rate)
        sharded_state, sharded_loss = step(sharded_state, sharded, rate)
        np.testing.assert_allclose(sharded_loss.mean, loss.mean, rtol=1e-6)
    close(jax.device_get(sharded_state.params), state.params, atol=1e-6, rtol=0)


def test_init_copies_and_counts_from_zero():
    state = train.init(KEY, params(), adam, jnp.float32(0.1), extra=(jnp.ones(2),))
    assert int(state.step) == 0 and float(state.extra[0][0]) == 1.0
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))


# --- epochs ---


def test_epochs_see_every_example_exactly_once_each():
    def objective(p, extra, data, key, hp):
        seen = jnp.zeros(N).at[data["id"]].add(1.0)
        return Loss(jnp.sum(p["w"] * 0), jnp.float32(1), {"seen": (seen, jnp.float32(1))})

    step, state = make(objective=objective)
    data = {"id": jnp.arange(N)}
    run = jax.jit(functools.partial(train.train_epochs, step), static_argnums=(4, 5))
    for epochs, minibatches in ((1, 1), (1, 6), (3, 4)):
        new, steps = run(state, data, KEY, jnp.float32(0.1), epochs, minibatches)
        assert steps["seen"][0].shape == (epochs, minibatches, N)
        sums = metrics.total(steps, (0, 1))
        np.testing.assert_array_equal(sums["seen"][0], np.full(N, epochs))
        assert float(sums["seen"][1]) == int(new.step) == epochs * minibatches


def test_epochs_are_shuffled_differently():
    def objective(p, extra, data, key, hp):
        return Loss(jnp.sum(p["b"] * 0), jnp.float32(1))

    def after(state, loss, hp):
        return state.extra

    orders = []

    def recording(state, part, hp):
        jax.debug.callback(lambda ids: orders.append(tuple(ids.tolist())), part, ordered=True)
        return step(state, part, hp)

    step, state = make(objective=objective, after=after)
    train.train_epochs(recording, state, jnp.arange(N), KEY, jnp.float32(0.1), 2, 2)
    jax.effects_barrier()
    assert len(orders) == 4 and orders[0] + orders[1] != orders[2] + orders[3]
    assert sorted(orders[0] + orders[1]) == sorted(orders[2] + orders[3]) == list(range(N))


def test_minibatches_must_divide():
    step, state = make()
    with pytest.raises(ValueError, match="minibatches=5 does not divide the 24 examples"):
        train.train_epochs(step, state, batch(), KEY, jnp.float32(0.1), 1, 5)


def test_parameters_of_half_precision_and_their_gradients_keep_their_type():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    grads, _ = jax.jit(train.gradient(objective, 2))(half, (), batch(), KEY, 0.1)
    close(jax.tree.map(jnp.float32, grads), numpy_gradient(half, batch()), rtol=0.02, atol=0.02)
    state = train.init(KEY, half, adam, jnp.float32(0.1))
    after, _ = jax.jit(make(optimizer=adam)[0])(state, batch(), jnp.float32(0.1))
    chex.assert_trees_all_equal_dtypes((grads, after), (half, state))
