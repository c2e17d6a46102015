"""Whole runs as one program: over a mesh, in parts, for many members at once."""

import functools
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jrl import loop, metrics, train, tree
from jrl.algos import ppo
from jrl.envs import cartpole
from jrl.experiment import Experiment
from jrl.types import Algorithm, Leaf

MEMBERS = 8
KEYS = jax.random.split(jax.random.key(0), MEMBERS)
COLLECTIVES = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"


def small_ppo():
    config = ppo.Config(
        num_envs=2, num_steps=8, epochs=1, minibatches=2, hidden=(8,), eval_episodes=2
    )
    env = cartpole.make()
    params = env.default_params.replace(max_steps_in_episode=20)
    return ppo.make(env, config, env_params=params)


def hypers():
    values = jnp.linspace(1e-4, 1e-2, MEMBERS)
    same = jax.tree.map(lambda x: jnp.full(MEMBERS, x), ppo.Hyper())
    return same.replace(learning_rate=values)


def noise():
    """An algorithm that compiles in no time: it learns the mean of what its key draws."""

    def objective(params, extra, batch, key, hp):
        draw = 3 + jax.random.normal(key, (4,))
        return train.Loss(jnp.sum((params - draw) ** 2), jnp.float32(4))

    step = train.make_train_step(train.gradient(objective), optax.sgd)

    def init(key, hp):
        return train.init(key, jax.random.normal(key), optax.sgd, hp)

    def iterate(state, hp):
        state, loss = step(state, (), hp)
        return state, loss.metrics

    def evaluate(state, key, hp):
        return {
            "error": (jnp.abs(state.params - 3), jnp.float32(1)),
            "key": (jax.random.uniform(key), jnp.float32(1)),
        }

    return Algorithm(init, iterate, evaluate, 4)


@functools.cache
def on_one_device():
    algorithm = small_ppo()
    program = loop.make_program(algorithm, 2)
    return jax.device_get(numbers(program(loop.population(algorithm, KEYS, hypers()), hypers(), 4)))


def numbers(x):
    """Typed keys as plain numbers."""

    def one(leaf):
        typed = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if typed else leaf

    return jax.tree.map(one, x)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, numbers(a), numbers(b))


def mesh():
    return jax.make_mesh((8,), (loop.AXIS,), axis_types=(AxisType.Auto,))


def spread(x):
    return jax.device_put(x, NamedSharding(mesh(), PartitionSpec(loop.AXIS)))


def test_eight_devices_give_what_one_gives_and_never_wait_for_each_other():
    algorithm = small_ppo()
    program = loop.make_program(algorithm, 2, mesh())
    members, hps = spread(loop.population(algorithm, KEYS, hypers())), spread(hypers())
    compiled = program.lower(members, hps, 4).compile()
    found = re.findall(COLLECTIVES, compiled.as_text())
    assert not found, f"devices wait for each other: {sorted(set(found))}"
    states, history = compiled(members, hps)
    assert len(jax.tree.leaves(states)[0].sharding.device_set) == 8
    # One member per device is compiled without a batch axis: sums round differently.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
        jax.device_get(numbers((states, history))),
        on_one_device(),
    )


def test_two_parts_equal_the_whole_bitwise():
    algorithm = small_ppo()
    program = loop.make_program(algorithm, 2)
    states = loop.population(algorithm, KEYS, hypers())
    states, first = program(states, hypers(), 2)
    states, second = program(states, hypers(), 2)
    history = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    equal((states, history), on_one_device())


def test_the_history_has_points_and_members():
    states, history = on_one_device()
    assert {"eval/return", "eval/length", "loss", "kl", "skipped"} <= set(history)
    assert {x.shape for x in jax.tree.leaves(history)} == {(4, MEMBERS)}
    assert states.point.tolist() == [4] * MEMBERS
    # 2 iterations of 2 updates each.
    np.testing.assert_array_equal(history["skipped"][1], np.full((4, MEMBERS), 4.0))
    np.testing.assert_array_equal(history["skipped"][0], np.zeros((4, MEMBERS)))


def test_a_member_does_not_notice_the_others():
    algorithm, rates = noise(), jnp.linspace(0.01, 0.3, MEMBERS)
    states, history = loop.train(algorithm, KEYS, rates, iterations=3, points=5)
    assert len(np.unique(states.state.params)) == MEMBERS
    for i in (0, 5):
        one, alone = loop.train(algorithm, KEYS[i : i + 1], rates[i : i + 1], 3, 5)
        np.testing.assert_allclose(one.state.params[0], states.state.params[i], rtol=1e-6)
        np.testing.assert_allclose(alone["loss"][0][:, 0], history["loss"][0][:, i], rtol=1e-5)


def test_every_point_evaluates_with_a_key_of_its_own():
    _, history = loop.train(noise(), KEYS, jnp.full(MEMBERS, 0.1), iterations=1, points=6)
    assert len(np.unique(history["eval/key"][0])) == 6 * MEMBERS


def test_training_trains():
    _, history = loop.train(noise(), KEYS, jnp.full(MEMBERS, 0.05), iterations=100, points=2)
    assert float(metrics.mean(metrics.total(history, (0, 1)))["eval/error"]) < 0.3


@pytest.mark.parametrize("devices", [1, 8])
def test_report_is_called_after_every_point(devices):
    algorithm, rates, calls = noise(), jnp.full(MEMBERS, 0.1), []

    def report(point, means):
        calls.append((point, means))

    program = loop.make_program(algorithm, 2, mesh() if devices == 8 else None, report)
    states = loop.population(algorithm, KEYS, rates)
    if devices == 8:
        states, rates = spread(states), spread(rates)
    compiled = program.lower(states, rates, 3).compile()
    assert not re.findall(COLLECTIVES, compiled.as_text()), "not even to report"
    _, history = compiled(states, rates)
    jax.block_until_ready(history)
    jax.effects_barrier()
    assert sorted(point for point, _ in calls) == [1, 2, 3]
    for point, means in calls:
        expected = metrics.mean(metrics.total(tree.take(history, point - 1)))
        np.testing.assert_allclose(means["loss"], expected["loss"], rtol=1e-5)


def test_the_states_are_donated_and_the_program_is_traced_once():
    algorithm, rates, traces = noise(), jnp.full(MEMBERS, 0.1), []

    def iterate(state, hp):
        traces.append(1)
        return algorithm.iterate(state, hp)

    program = loop.make_program(algorithm._replace(iterate=iterate), 2)
    states = loop.population(algorithm, KEYS, rates)
    for scale in (1.0, 2.0, 3.0):
        old = states
        states, _ = program(states, scale * rates, 2)
        assert old.state.params.is_deleted()
    assert len(traces) == 1


def test_iterations_must_be_positive():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        loop.make_program(noise(), 0)


def test_total_steps_follow_steps():
    config = ppo.Config(num_envs=2, num_steps=8, minibatches=2, total_steps=160)
    seen = []

    def make(config):
        seen.append(config.total_steps)
        return ppo.make(cartpole.make(), config)

    plan = Experiment("x", make, config, ppo.Hyper(), points=5).plan()
    assert (plan.steps, plan.iterations, plan.steps_per_point) == (160, 2, 32)
    plan = Experiment("x", make, config, ppo.Hyper(), points=5, steps=161).plan()
    assert (plan.steps, plan.requested) == (240, 161) and seen[-1] == 240


def test_close_settings_have_different_names():
    sweep = {"clip_eps": (0.1, 0.12345678, 0.12345679)}
    plan = Experiment(
        "x", lambda c: ppo.make(cartpole.make(), c), ppo.Config(), ppo.Hyper(), sweep=sweep
    ).plan()
    labels = [label for label, _ in plan.settings]
    assert labels == ["clip_eps=0.1", "clip_eps=0.12345678", "clip_eps=0.12345679"]


# --- more members than the devices divide ---


@pytest.mark.parametrize(
    ("members", "devices"), [(1, 1), (2, 2), (8, 8), (9, 5), (10, 5), (16, 8), (33, 7)]
)
def test_every_device_of_a_mesh_has_something_to_do(members, devices):
    found = loop.make_mesh(members).size
    assert found == devices
    # As fast as all eight devices, and with one device less it would not be.
    share = math.ceil(members / 8)
    assert (found - 1) * share < members <= found * share


def test_populations_are_filled_up_and_cut():
    keys = jax.random.split(KEYS[0], 5)
    tree_ = {"key": keys, "x": jnp.arange(10.0).reshape(5, 2)}
    filled = loop.resize(tree_, 7)
    np.testing.assert_array_equal(filled["x"][5:], [[8, 9], [8, 9]])
    equal(loop.resize(filled, 5), tree_)
    equal(loop.resize(tree_, 5), tree_)
    placed = loop.place(tree_, 5, loop.make_mesh(5, 4))
    assert placed["x"].shape == (8, 2) and placed["x"].sharding.num_devices == 4


class Rate(struct.PyTreeNode):
    rate: Leaf = 0.1


def five(devices):
    """Five learners of the mean, which differ only in their seeds."""
    algorithm = noise()

    def make(config):
        return algorithm._replace(
            init=lambda key, hp: algorithm.init(key, hp.rate),
            iterate=lambda state, hp: algorithm.iterate(state, hp.rate),
        )

    return Experiment(
        "noise",
        make,
        None,
        Rate(),
        steps=64,
        seeds=5,
        points=4,
        checkpoint_every=1,
        devices=devices,
    )


def finals(summary):
    return [setting["final"]["eval/error"]["mean"] for setting in summary["settings"]]


def test_five_members_on_four_devices_are_the_five_of_one_device(tmp_path):
    one, four = (five(n).run(tmp_path / str(n), quiet=True) for n in (1, 4))
    assert one["population"] == four["population"] == 5 and four["devices"] == 4
    assert four["settings"][0]["final"]["eval/error"]["n"] == 5
    assert finals(one) == pytest.approx(finals(four), rel=1e-5)


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    whole = five(1).run(tmp_path / "whole", quiet=True)
    five(4).run(tmp_path / "half", quiet=True)
    (tmp_path / "half" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "4")
    half = five(2).run(tmp_path / "half", resume=True, quiet=True)
    assert finals(half) == pytest.approx(finals(whole), rel=1e-5)


def test_what_only_fills_the_devices_up_is_not_reported():
    algorithm, rates, calls = noise(), jnp.full(5, 0.1), []
    mesh = loop.make_mesh(5, 4)
    program = loop.make_program(algorithm, 2, mesh, lambda point, means: calls.append(means), 5)
    states, rates = (
        loop.place(x, 5, mesh) for x in (loop.population(algorithm, KEYS[:5], rates), rates)
    )
    _, history = program(states, rates, 1)
    jax.block_until_ready(history)
    jax.effects_barrier()
    real = tree.take(jax.tree.map(lambda x: np.asarray(x)[:, :5], history), 0)
    assert calls[0]["eval/error"] == pytest.approx(
        float(metrics.mean(metrics.total(real))["eval/error"]), rel=1e-5
    )
