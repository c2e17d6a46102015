"""Tensors in safetensors files: found by name, read in parts, written one after another.

The format is a header in JSON, with the place of every tensor, and then their bytes:
https://github.com/huggingface/safetensors.
"""

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = ["Entry", "Stored", "check_dtype", "find", "read", "read_json", "write"]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""What safetensors calls the dtypes that models are kept in."""


class Stored(NamedTuple):
    """Where a tensor is, and what it is like."""

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    code: str


class Entry(NamedTuple):
    """A tensor to be written; `make() -> NumPy array` is called when it is its turn."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def check_dtype(dtype) -> np.dtype:
    """Returns a dtype by its name; raises ValueError unless weights can be kept in it."""
    dtype = jnp.dtype(dtype)
    if dtype.name not in CODES:
        raise ValueError(f"dtype must be one of {', '.join(CODES)}, got {dtype.name}")
    return dtype


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file of JSON; raises ValueError if it is missing or broken."""
    if not path.exists():
        raise ValueError(f"{path}: missing, give a folder that a model was saved to")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find(folder: pathlib.Path) -> dict[str, Stored]:
    """Finds all tensors of a folder by name, in one file or several, and reads none.

    Raises ValueError for files that are missing or broken, ImportError without `safetensors`.
    """
    weight_map = None
    if (folder / SINGLE).exists():
        files = [folder / SINGLE]
    elif (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map", {})
        files = sorted({folder / file for file in weight_map.values()})
    else:
        raise ValueError(f"{folder}: neither {SINGLE} nor {INDEX} is there")
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ValueError(f"{folder}: {INDEX} names files that are missing: {', '.join(missing)}")
    tensors = {}
    for file in files:
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dict)
                if weight_map is None or weight_map.get(name) == file.name:
                    part = opened.get_slice(name)
                    tensors[name] = Stored(file, name, tuple(part.get_shape()), part.get_dtype())
    return tensors


def read(stored: Stored, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of a tensor."""
    # Opened anew each time: what was read stays in memory as long as its file is mapped.
    with _open(stored.file) as file:
        return file.get_slice(stored.name)[index]


def write(folder: pathlib.Path, entries: Sequence[Entry], max_shard_bytes: int) -> None:
    """Writes one file, or files that are not larger than asked for, and their index.

    Raises ValueError unless `max_shard_bytes` is positive.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(e.size for e in shards[-1]) + entry.size > max_shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    if len(shards) == 1:
        _write(folder / SINGLE, shards[0])
        return
    weight_map = {}
    for n, shard in enumerate(shards, 1):
        file = f"model-{n:05}-of-{len(shards):05}.safetensors"
        _write(folder / file, shard)
        weight_map |= {entry.name: file for entry in shard}
    index = {
        "metadata": {"total_size": sum(entry.size for entry in entries)},
        "weight_map": weight_map,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _open(file: pathlib.Path):
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError("weights need safetensors: pip install 'jrl[lm]'") from error
    try:
        return safe_open(file, "np")
    except SafetensorError as error:
        raise ValueError(f"{file}: {error}") from error


def _write(file: pathlib.Path, entries: Sequence[Entry]) -> None:
    """Writes tensors one by one: safetensors' own function wants all of them in memory."""
    # transformers asks for a format.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        begin, end = end, end + entry.size
        header[entry.name] = {
            "dtype": CODES[entry.dtype.name],
            "shape": entry.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            # As bytes, because NumPy's buffers know no bfloat16.
            x = np.ascontiguousarray(entry.make(), entry.dtype).reshape(-1)
            stream.write(x.view(np.uint8).data)
