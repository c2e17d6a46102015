"""Checkpoints: round trips, corruption, and kills in the middle of a save."""

import gc
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jrl import train
from jrl.checkpoint import Checkpointer, CorruptCheckpointError


@pytest.fixture
def leftovers():
    """Lets what a failed read leaves behind complain within the test that made it fail."""
    yield
    time.sleep(0.1)
    gc.collect()


def corrupting(test):
    """Marks a test after whose failed read orbax closes the event loop under the other reads.

    Threads of tensorstore still report to that loop ("Event loop is closed"), and coroutines
    that nobody awaited are collected later: without `leftovers`, during any later test.
    """
    ignore = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return pytest.mark.usefixtures("leftovers")(ignore(test))


class Pair(NamedTuple):
    a: object
    b: object


def assert_same(x, y):
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if hasattr(a, "dtype"):
            assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def make_state():
    optimizer = lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lr))  # noqa: E731
    params = {"w": jnp.arange(6.0).reshape(2, 3), "layers": {0: jnp.ones(3), 1: jnp.zeros(2)}}
    return train.init(jax.random.key(3), params, optimizer, 1e-3, extra={"target": jnp.ones(2)})


def corrupt(step_directory: pathlib.Path, item: str):
    """Flips one bit in the middle of the largest array file of an item."""
    files = [p for p in (step_directory / item).rglob("*") if p.parent.name == "d"]
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


TREES = {
    "train_state": make_state,
    "keys": lambda: {
        "one": jax.random.key(0),
        "many": jax.random.split(jax.random.key(1), 4),
        "rbg": jax.random.key(2, impl="rbg"),
        "raw": jax.random.PRNGKey(5),
    },
    "containers": lambda: Pair([jnp.ones(2), (jnp.int32(3), None)], {"x.y": {"z": jnp.ones(1)}}),
    "dtypes": lambda: {
        str(d): jnp.ones(3, d) for d in ("bfloat16", "float16", "int8", "uint32", "bool")
    },
    "scalars": lambda: {"int": 3, "float": 0.5, "bool": True, "numpy": np.float64(2.5)},
    "empty arrays": lambda: {"none": jnp.zeros((0, 3)), "some": jnp.ones(2)},
    "nothing": lambda: (),
    "leaf": lambda: jnp.arange(3),
}


@pytest.mark.parametrize("name", TREES)
def test_round_trip(tmp_path, name):
    tree = TREES[name]()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(7, {"item": tree}, {"text": "meta", "number": 1.5})
        restored = checkpointer.restore({"item": tree})
    assert restored.step == 7 and restored.meta == {"text": "meta", "number": 1.5}
    assert_same(tree, restored.items["item"])


def test_restores_into_shapes_and_one_item_alone(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": state.params, "rest": state.replace(params=None)})
    with Checkpointer(tmp_path) as checkpointer:
        target = jax.eval_shape(lambda: state.params)
        assert_same(state.params, checkpointer.restore({"params": target}).items["params"])
        flat = checkpointer.restore({"params": None}).items["params"]
        assert sorted(flat) == ["layers.0", "layers.1", "w"]
        assert checkpointer.restore({}).items == {}


def test_restores_onto_another_mesh(tmp_path):
    def place(devices, spec):
        mesh = jax.make_mesh(
            (devices,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
        )
        return NamedSharding(mesh, spec)

    keys = jax.device_put(jax.random.split(jax.random.key(0), 8), place(8, P("x")))
    tree = {"a": jax.device_put(jnp.arange(8.0), place(8, P("x"))), "keys": keys}
    half = place(4, P("x"))
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=half), tree)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"state": tree})
        restored = checkpointer.restore({"state": target}).items["state"]
    assert_same(tree, restored)
    assert restored["a"].sharding == half
    assert len(restored["keys"].sharding.device_set) == 4


def test_donation_right_after_saving_changes_nothing(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1_000_000)
    with Checkpointer(tmp_path, keep=5) as checkpointer:
        for k in range(4):
            checkpointer.save(k, {"x": x})
            x = step(x)
        for k in range(4):
            assert checkpointer.restore({"x": x}, step=k).items["x"].max() == k


def test_keeps_the_newest_and_replaces_and_discards(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        for k in (1, 2, 3):
            checkpointer.save(k, {"x": jnp.float32(k)})
        assert checkpointer.steps() == [2, 3]
        checkpointer.save(3, {"x": jnp.float32(33)})
        assert checkpointer.restore({"x": jnp.float32(0)}).items["x"] == 33
        checkpointer.discard_after(2)
        assert checkpointer.steps() == [2]
        checkpointer.save(3, {"x": jnp.float32(3)})
        assert checkpointer.restore({"x": jnp.float32(0)}).step == 3


def test_nothing_to_restore(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            checkpointer.restore({"x": jnp.ones(2)})
        checkpointer.save(1, {"x": jnp.ones(2)})
        with pytest.raises(FileNotFoundError, match="no checkpoint"):
            checkpointer.restore({"x": jnp.ones(2)}, step=2)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"x": {"w": jnp.ones(3)}}, r"x\.w: shape \(2,\) was saved, the target has \(3,\)"),
        ({"x": {"w": jnp.ones(2, int)}}, r"x\.w: float32 was saved, the target is int32"),
        ({"x": {"v": jnp.ones(2)}}, r"not in the checkpoint: \['v'\]; only there: \['w'\]"),
        ({"y": jnp.ones(2)}, r"no item 'y', only \['x'\]"),
        ({"x": {"w": jax.random.key(0)}}, r"typed key"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(tmp_path, target, message):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"x": {"w": jnp.ones(2)}})
        with pytest.raises(ValueError, match=message):
            checkpointer.restore(target)


def big(k):
    return {"w": jax.random.normal(jax.random.key(k), (64, 64)), "b": jnp.full(3, float(k))}


@corrupting
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "manifest", "item"])
def test_a_corrupt_step_is_named_and_the_previous_one_used(tmp_path, damage):
    with Checkpointer(tmp_path) as checkpointer:
        for k in (10, 20):
            checkpointer.save(k, {"params": big(k)}, {"k": k})
    step = tmp_path / "20"
    files = [p for p in (step / "params").rglob("*") if p.parent.name == "d"]
    path = max(files, key=lambda p: p.stat().st_size)
    if damage == "flip":
        corrupt(step, "params")
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "remove":
        path.unlink()
    elif damage == "manifest":
        meta = step / "manifest" / "metadata"
        meta.write_text(meta.read_text().replace('"k": 20', '"k": 21'))
    else:
        (step / "params").rename(tmp_path.parent / "elsewhere")
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.warns(UserWarning, match="step 20 is corrupt .*; step 10 is used instead"):
            restored = checkpointer.restore({"params": big(0)})
        assert restored.step == 10 and restored.meta == {"k": 10}
        assert_same(big(10), restored.items["params"])


@corrupting
def test_no_step_left_is_an_error_that_names_all(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for k in (1, 2):
            checkpointer.save(k, {"params": big(k)})
    for k in (1, 2):
        corrupt(tmp_path / str(k), "params")
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(CorruptCheckpointError, match=r"step 2 is corrupt.*params.*step 1 is corr"),
    ):
        checkpointer.restore({"params": big(0)})


@corrupting
def test_every_flipped_bit_of_the_arrays_is_noticed(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"params": big(1)})
    files = [p for p in (tmp_path / "1" / "params").rglob("*") if p.parent.name == "d"]
    rng = np.random.default_rng(0)
    silent = 0
    for path in files:
        original = path.read_bytes()
        for _ in range(8):
            data = bytearray(original)
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            path.write_bytes(bytes(data))
            with Checkpointer(tmp_path) as checkpointer:
                try:
                    restored = checkpointer.restore({"params": big(0)})
                    # A bit that no array depends on may flip; a wrong number may not come back.
                    assert_same(big(1), restored.items["params"])
                    silent += 1
                except CorruptCheckpointError:
                    pass
        path.write_bytes(original)
    assert silent < 8 * len(files)


SAVER = """
import sys
import jax.numpy as jnp
from jrl.checkpoint import Checkpointer
with Checkpointer(sys.argv[1]) as checkpointer:
    first = max(checkpointer.steps(), default=0)
    for k in range(first + 1, first + 1000):
        checkpointer.save(k, {"x": {"a": jnp.full(500_000, k), "b": jnp.full(7, k)}}, {"k": k})
        print(k, flush=True)
"""


# A read of the tests above may still answer, to an event loop that is closed: see `corrupting`.
@pytest.mark.filterwarnings(
    "ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)
def test_a_kill_at_any_moment_leaves_a_whole_step(tmp_path):
    rng = np.random.default_rng(1)
    target = {"x": {"a": jnp.zeros(500_000, int), "b": jnp.zeros(7, int)}}
    last = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVER), tmp_path / "c"], stdout=subprocess.PIPE
        )
        for _ in range(3):
            assert process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Checkpointer(tmp_path / "c") as checkpointer, warnings.catch_warnings():
            warnings.simplefilter("error")
            step, items, meta = checkpointer.restore(target)
        assert step > last and meta == {"k": step}
        assert (items["x"]["a"] == step).all() and (items["x"]["b"] == step).all()
        last = step


def test_the_module_is_cheap_to_import():
    code = "import sys, jrl.checkpoint; assert 'orbax.checkpoint' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
