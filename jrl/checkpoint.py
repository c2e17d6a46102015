"""Checkpoints: named pytrees saved asynchronously and atomically, verified when they come back.

A step is a set of items (parameters, the rest of the state, ...) that can be restored without
one another, and a manifest: shape, dtype and digest of every array. orbax writes and reads the
arrays but does not notice a flipped bit; the digests do. A step that does not verify is reported
and the one before it is used.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrl.types import PyTree

__all__ = ["Checkpointer", "CorruptCheckpointError", "Restored"]

Manifest = dict[str, Any]


class CorruptCheckpointError(RuntimeError):
    """No step of a directory could be read back as it was written."""


class Restored(NamedTuple):
    """What came back: the step it is from, the items that were asked for, and its `meta`."""

    step: int
    items: dict[str, PyTree]
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores steps below one directory, keeping the newest `keep`.

    With `read_only` nothing there is touched while it only restores, so that another process may
    be saving at the same time.

    >>> import tempfile
    >>> with Checkpointer(tempfile.mkdtemp()) as checkpointer:
    ...     checkpointer.save(1, {"params": {"w": jnp.ones(2)}}, {"note": "first"})
    ...     restored = checkpointer.restore({"params": {"w": jnp.zeros(2)}})
    >>> restored.step, restored.items["params"]["w"].tolist(), restored.meta
    (1, [1.0, 1.0], {'note': 'first'})
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 2, read_only: bool = False):
        # orbax takes seconds to import, so only those who open a checkpoint pay for it.
        import orbax.checkpoint as ocp

        self.directory = pathlib.Path(directory).absolute()
        self._ocp = ocp
        # orbax's own option of that name says so in the log of every program.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, create=not read_only
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpointer":
        """Returns itself; the block's end waits for the last save."""
        return self

    def __exit__(self, *_) -> None:
        """Closes."""
        self.close()

    def steps(self) -> list[int]:
        """Returns the steps on disk, oldest first; unfinished saves are not among them."""
        self.wait()
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict[str, PyTree], meta: dict[str, Any] | None = None) -> None:
        """Copies the arrays and returns while they are being written; a kill leaves no half step.

        Because of the copy the arrays may be donated right away. `meta` is anything JSON can
        hold. A step of the same number is replaced.
        """
        flat = {item: _flatten(tree) for item, tree in items.items()}
        copies = {item: {name: _copy(x) for name, x in xs.items()} for item, xs in flat.items()}
        manifest = {
            "items": {
                item: {name: _describe(x) for name, x in xs.items()} for item, xs in flat.items()
            },
            "meta": meta or {},
        }
        _add_digests(manifest, copies)
        manifest["seal"] = _seal(manifest)
        save, args = self._ocp.args, {}
        for item, arrays in copies.items():
            # orbax refuses arrays of size zero; the manifest alone brings them back.
            arrays = {name: x for name, x in arrays.items() if x.size}
            if arrays:
                args[item] = save.StandardSave(arrays)
        self.wait()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        composite = save.Composite(**args, manifest=save.JsonSave(manifest))
        self._manager.save(step, args=composite, force=True)

    def restore(self, targets: dict[str, PyTree], step: int | None = None) -> Restored:
        """Restores the items named in `targets` from the newest step that verifies.

        A target is a tree of arrays or `jax.ShapeDtypeStruct`s; arrays come back in its
        structure and on its shardings, or as a flat dict of NumPy arrays where it is `None`.
        With `step` only that one is read. Raises FileNotFoundError if there is none, ValueError
        if a target does not have the arrays that were saved (before anything is read), and
        CorruptCheckpointError if no step verifies. A corrupt step that is passed over is
        reported as a warning that names it.
        """
        steps = self.steps() if step is None else [step] * (step in self.steps())
        if not steps:
            raise FileNotFoundError(f"no checkpoint in {self.directory}")
        problems = []
        for candidate in reversed(steps):
            try:
                restored = self._read(candidate, targets)
            except _CorruptError as error:
                problems.append(f"step {candidate} is corrupt ({error})")
                continue
            for problem in problems:
                warnings.warn(f"{problem}; step {candidate} is used instead", stacklevel=2)
            return restored
        raise CorruptCheckpointError(f"{self.directory}: " + "; ".join(problems))

    def discard_after(self, step: int) -> None:
        """Deletes every later step: what a run that goes on from `step` would write again."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def reached_preemption(self, step: int) -> bool:
        """Asks in a multi-process job whether all processes must save this step and leave."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until what was saved is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads."""
        self._manager.close()

    def _read(self, step: int, targets: dict[str, PyTree]) -> Restored:
        args = self._ocp.args
        try:
            composite = args.Composite(manifest=args.JsonRestore())
            manifest = self._manager.restore(step, args=composite)["manifest"]
            seal = manifest.pop("seal")
        except Exception as error:
            raise _CorruptError(f"manifest: {_first_line(error)}") from error
        if seal != _seal(manifest):
            raise _CorruptError("manifest: digest differs")
        wanted = {item: _match(item, targets[item], manifest["items"]) for item in targets}
        composite = {
            item: args.StandardRestore(abstract) for item, abstract in wanted.items() if abstract
        }
        try:
            arrays = (
                self._manager.restore(step, args=args.Composite(**composite)) if composite else {}
            )
        except Exception as error:
            raise _CorruptError(_first_line(error)) from error
        items = {}
        for item, target in targets.items():
            found = dict(arrays[item]) if wanted[item] else {}
            _verify(item, found, manifest["items"][item])
            items[item] = _unflatten(target, found, manifest["items"][item])
        return Restored(step, items, manifest["meta"])


class _CorruptError(Exception):
    """One step does not verify."""


def _flatten(tree: PyTree) -> dict[str, Any]:
    """Names every leaf by its path; leaves of no numbers (functions, strings) are refused."""
    flat = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in flat:
            raise ValueError(f"two leaves of the tree are named {name}: rename a dict key")
        flat[name] = leaf
    return flat


def _is_key(x) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_global(x) -> bool:
    """Says whether parts of the array are on other processes, out of this one's reach."""
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def _copy(x):
    x = jax.random.key_data(x) if _is_key(x) else x
    return x if _is_global(x) else np.array(x)


def _describe(x) -> dict[str, Any]:
    data = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else np.asarray(x)
    key = str(jax.random.key_impl(x)) if _is_key(x) else None
    return {"shape": list(data.shape), "dtype": str(data.dtype), "key": key, "digest": None}


def _digest(x) -> str | None:
    if _is_global(x):
        return None
    data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


def _add_digests(manifest: Manifest, copies) -> None:
    """Fills the digests in, several at a time: hashing releases the interpreter's lock."""
    places = [(item, name) for item, xs in copies.items() for name in xs]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        digests = pool.map(lambda place: _digest(copies[place[0]][place[1]]), places)
        for (item, name), digest in zip(places, digests, strict=True):
            manifest["items"][item][name]["digest"] = digest


def _seal(manifest: Manifest) -> str:
    text = json.dumps({k: v for k, v in manifest.items() if k != "seal"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _match(item: str, target: PyTree, saved: Manifest) -> dict[str, Any]:
    """Compares a target with what was saved and returns what orbax shall restore into."""
    if item not in saved:
        raise ValueError(f"the checkpoint has no item {item!r}, only {sorted(saved)}")
    described = saved[item]
    leaves = {} if target is None else _flatten(target)
    if target is not None and leaves.keys() != described.keys():
        missing, extra = sorted(leaves.keys() - described), sorted(described.keys() - leaves)
        raise ValueError(f"{item}: not in the checkpoint: {missing}; only there: {extra}")
    abstract = {}
    for name, saved_as in described.items():
        shape, dtype = tuple(saved_as["shape"]), jnp.dtype(saved_as["dtype"])
        leaf = leaves.get(name)
        if leaf is not None:
            _compare(f"{item}.{name}", leaf, shape, dtype, saved_as["key"])
        sharding = getattr(leaf, "sharding", None)
        if 0 in shape:
            continue
        abstract[name] = (
            np.broadcast_to(np.zeros((), dtype), shape)
            if sharding is None
            else jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        )
    return abstract


def _compare(name: str, leaf, shape: tuple[int, ...], dtype, key: str | None) -> None:
    if _is_key(leaf) != (key is not None):
        raise ValueError(f"{name}: one of target and checkpoint is a typed key, the other is not")
    data = jax.eval_shape(jax.random.key_data, leaf) if key else leaf
    if np.shape(data) != shape:
        raise ValueError(f"{name}: shape {shape} was saved, the target has {np.shape(data)}")
    if hasattr(data, "dtype") and data.dtype != dtype:
        raise ValueError(f"{name}: {dtype} was saved, the target is {data.dtype}")


def _verify(item: str, arrays: dict[str, Any], described: Manifest) -> None:
    for name, x in arrays.items():
        expected, found = described[name]["digest"], _digest(x)
        if expected is not None and found is not None and found != expected:
            raise _CorruptError(f"the digest of {item}.{name} differs")


def _unflatten(target: PyTree, arrays: dict[str, Any], described: Manifest) -> PyTree:
    for name, saved_as in described.items():
        if 0 in saved_as["shape"]:
            arrays[name] = np.zeros(saved_as["shape"], jnp.dtype(saved_as["dtype"]))
    if target is None:
        return arrays
    flat = _flatten(target)
    leaves = [_like(leaf, arrays[name], described[name]["key"]) for name, leaf in flat.items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _like(leaf, x, key: str | None):
    if key is not None:
        return jax.random.wrap_key_data(jnp.asarray(x), impl=key)
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(x)
    return x if isinstance(leaf, np.ndarray | np.generic) else jnp.asarray(x)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
