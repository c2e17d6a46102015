"""Hugging Face folders of Llama 3, Qwen 2 and 3, Gemma 2 and 3: read and written without torch.

A folder has one tensor [outputs, inputs] for each matrix of each layer; a model here has one array
[layers, inputs, outputs] for all of them. Arrays are read from the mapped files one by one, and of
each a device gets its own part, so that memory never holds the model twice.
"""

import dataclasses
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrl.lm.config import Config
from jrl.lm.huggingface_config import config_from, config_to
from jrl.lm.safetensors_files import Entry, Stored, check_dtype, find, read, read_json, write
from jrl.lm.transformer import make
from jrl.types import Array, Params

__all__ = ["config_from", "config_to", "load", "save"]

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""Places an array: (path, shape) -> sharding, where a path is like "layers/mlp/up/kernel"."""

ENDS = {
    "embedding": "embed_tokens.weight",
    "norm/scale": "norm.weight",
    "head": "lm_head.weight",
    "score/kernel": "score.weight",
    "score/bias": "score.bias",
}
HEADS = ("lm_head.weight", "score.weight", "score.bias")
"""Tensors that stand outside the prefix of all others."""

WORDS = {
    "attention": "self_attn",
    **{word: f"{word}_proj" for word in ("q", "k", "v", "o", "gate", "up", "down")},
    "kernel": "weight",
    "scale": "weight",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
POST_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}

CARRIED = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
CARRIED_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
CARRIED_FOLDER = "additional_chat_templates"
"""What `save` takes from another folder: fields of config.json, and files as they are."""


class Target(NamedTuple):
    """An array of the model, and the tensors that it is made of: one, or one for each layer."""

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stored: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        """Whether it has an axis of layers."""
        return self.names[0].startswith("layers.")


def load(
    folder: str | pathlib.Path, dtype="float32", sharding: Sharding | None = None
) -> tuple[Config, Params]:
    """Loads a model: `config, params = load(folder)`, and `make(config)` runs it.

    It reads `model.safetensors`, or the shards that `model.safetensors.index.json` names, in any
    floating-point dtype. Of a multimodal Gemma 3 it reads the text model. A classifier of one
    label, which is how reward models are published, comes with the head of
    `jrl.lm.transformer.scores` as `params["score"]`, and, having no head for tokens, as a model
    that is tied.

    Args:
        folder: a local folder.
        dtype: float32, bfloat16 or float16, of all arrays.
        sharding: `(path, shape) -> jax.sharding.Sharding`, where a path is like
            "layers/attention/q/kernel"; None for the default device.

    Returns: the configuration, with `attention` and `remat` at their defaults, and the parameters.
    Raises: ValueError for a model or an option that is not supported, for files that are missing
    or broken, and for tensors that are missing, unexpected or misshapen, all in one message;
    ImportError if `safetensors` is missing.
    """
    folder, dtype = pathlib.Path(folder), check_dtype(dtype)
    config = config_from(read_json(folder / "config.json"))
    tensors = _text_model(find(folder))
    if "score.weight" in tensors and "lm_head.weight" not in tensors:
        config = dataclasses.replace(config, tied=True)
    targets = _targets(config, "score.weight" in tensors)
    _check_tensors(folder, targets, tensors, config)
    params = {}
    for path, target in targets.items():
        *parents, name = path.split("/")
        place = params
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = _load_array(path, target, tensors, dtype, sharding)
    return config, params


def save(
    folder: str | pathlib.Path,
    config: Config,
    params: Params,
    dtype=None,
    tokenizer_from: str | pathlib.Path | None = None,
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> None:
    """Saves a model so that `load` and transformers read it.

    The folder appears when all of it is written; the host needs memory for one tensor at a time.
    `params["score"]` becomes the head of a classifier of one label, whose bias transformers
    ignores.

    Args:
        folder: where to; folders above it are made.
        config, params: a model of one of the families that `config_from` names.
        dtype: float32, bfloat16 or float16; None for that of the parameters.
        tokenizer_from: a folder whose tokenizer, chat template, generation_config.json, special
            ids and number of positions are carried over.
        max_shard_bytes: no file has more bytes of weights, unless a single tensor does.
        overwrite: whether to replace a folder that exists.

    Raises: ValueError for a folder that exists, for parameters that are missing, unexpected or
    misshapen, all in one message, and for a model that no family has.
    """
    folder = pathlib.Path(folder)
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists already: choose another, or pass overwrite=True")
    leaves = {_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    score = "score/kernel" in leaves
    targets = _targets(config, score)
    _check_params(targets, leaves)
    entries = _entries(targets, leaves, dtype)
    unfinished = _beside(folder, "unfinished")
    unfinished.mkdir(parents=True)
    try:
        raw = config_to(config, **_carry(tokenizer_from, unfinished))
        if score:
            name = raw["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
            raw |= {"architectures": [name], "num_labels": 1}
        raw["dtype"] = raw["torch_dtype"] = entries[0].dtype.name
        (unfinished / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        write(unfinished, entries, max_shard_bytes)
        replaced = _beside(folder, "replaced")
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _path(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _beside(folder: pathlib.Path, word: str) -> pathlib.Path:
    """Names a folder on the same disk, and clears what a crash may have left there."""
    other = folder.with_name(f".{folder.name}.{word}")
    if other.exists():
        shutil.rmtree(other)
    return other


def _targets(config: Config, score: bool) -> dict[str, Target]:
    """Lists the arrays of a model, and how their tensors are called and shaped in a folder."""
    params = jax.eval_shape(make(config).init, jax.random.key(0))
    if score:
        params["score"] = {"kernel": jnp.zeros(config.width), "bias": jnp.zeros(())}
    words = WORDS | (POST_NORMS if config.post_norms else {})
    targets = {}
    for keys, x in jax.tree_util.tree_leaves_with_path(params):
        path = _path(keys)
        if path in ENDS:
            # The head of a classifier has an axis of labels.
            stored = (1, *x.shape) if path.startswith("score") else x.shape
            targets[path] = Target(x.shape, (ENDS[path],), stored)
        else:
            suffix = ".".join(words.get(word, word) for word in path.split("/")[1:])
            names = tuple(f"layers.{layer}.{suffix}" for layer in range(config.num_layers))
            targets[path] = Target(x.shape, names, x.shape[:0:-1])
    return targets


def _text_model(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """Names tensors as they are called inside the text model; drops those of a vision model."""
    last = ENDS["embedding"]
    prefix = next((x.removesuffix(last) for x in tensors if x.endswith(last)), "model.")
    found = {}
    for name, tensor in tensors.items():
        head = name.removeprefix("language_model.")
        if head in HEADS:
            found[head] = tensor
        elif name.startswith(prefix):
            found[name.removeprefix(prefix)] = tensor
        elif "language_model" not in prefix:
            found[name] = tensor
    return found


def _check_tensors(folder, targets: dict[str, Target], tensors, config: Config) -> None:
    """Raises one ValueError for all tensors that do not fit."""
    shapes = {name: target.stored for target in targets.values() for name in target.names}
    problems = [
        f"{name} is {tensors[name].code} {list(tensors[name].shape)}, not F32 {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors
        and (tensors[name].shape != shape or not re.fullmatch(r"B?F\d\d", tensors[name].code))
    ]
    # Heads have no bias in transformers. Its old versions saved frequencies, and many programs
    # save a tied embedding twice.
    missing = shapes.keys() - tensors.keys() - {"score.bias"}
    harmless = r".*rotary_emb\.inv_freq" + r"|lm_head\.weight" * config.tied
    unexpected = [x for x in tensors.keys() - shapes.keys() if not re.fullmatch(harmless, x)]
    _refuse(f"{folder}: tensors do not fit config.json", missing, unexpected, problems)


def _check_params(targets: dict[str, Target], leaves: dict[str, Array]) -> None:
    problems = [
        f"{path} is {list(leaves[path].shape)}, not {list(target.shape)}"
        for path, target in targets.items()
        if path in leaves and leaves[path].shape != target.shape
    ]
    missing, unexpected = targets.keys() - leaves.keys(), leaves.keys() - targets.keys()
    _refuse("params do not fit config", missing, unexpected, problems)


def _refuse(what: str, missing, unexpected, problems) -> None:
    lists = {"missing": sorted(missing), "unexpected": sorted(unexpected), "misshapen": problems}
    parts = [f"{word} {', '.join(names)}" for word, names in lists.items() if names]
    if parts:
        raise ValueError(f"{what}: {'; '.join(parts)}")


def _load_array(
    path: str, target: Target, tensors, dtype: np.dtype, sharding: Sharding | None
) -> Array:
    """Reads an array, every device its own part, and waits until the host's copy is not needed."""
    parts = {}

    def part(index):
        # Devices that hold the same part share one copy.
        key = tuple((piece.start, piece.stop) for piece in index)
        if key not in parts:
            parts[key] = _read_part(target, tensors, dtype, index)
        return parts[key]

    if sharding is None:
        array = jax.device_put(part((slice(None),) * len(target.shape)))
    else:
        array = jax.make_array_from_callback(target.shape, sharding(path, target.shape), part)
    return jax.block_until_ready(array)


def _read_part(target: Target, tensors, dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of an array, from every tensor only what belongs to it."""
    shape = tuple(len(range(n)[piece]) for n, piece in zip(target.shape, index, strict=True))
    if not target.stacked:
        (name,) = target.names
        if name not in tensors:
            return np.zeros(shape, dtype)
        rest = (slice(None),) * (len(target.stored) - len(index))
        return read(tensors[name], rest + index).astype(dtype, copy=False).reshape(shape)
    part = _empty(shape, dtype)
    for out, name in zip(part, target.names[index[0]], strict=True):
        _transpose(read(tensors[name], index[:0:-1]), out)
    return part


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Makes an array that begins where jax, on a CPU, can take it over without a copy."""
    raw = np.empty(math.prod(shape) * dtype.itemsize + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + raw.size - 64].view(dtype).reshape(shape)


def _transpose(x: np.ndarray, out: np.ndarray, rows: int = 64) -> np.ndarray:
    """Writes `x.T` (or a vector as it is) into `out`, in blocks that a processor's cache holds."""
    for row in range(0, len(x), rows):
        out[..., row : row + rows] = x[row : row + rows].T
    return out


def _entries(targets: dict[str, Target], leaves: dict[str, Array], dtype) -> list[Entry]:
    """Lists the tensors to be written."""
    entries = []
    for path, target in targets.items():
        x = leaves[path]
        kind = check_dtype(x.dtype if dtype is None else dtype)
        if path == "score/bias" and not np.any(np.asarray(x)):
            continue
        for layer, name in enumerate(target.names):

            def tensor(x=x, layer=layer, target=target, kind=kind):
                if not target.stacked:
                    return np.asarray(x)
                return _transpose(np.asarray(x[layer]), np.empty(target.stored, kind))

            entries.append(
                Entry(name if name in HEADS else f"model.{name}", target.stored, kind, tensor)
            )
    return entries


def _carry(source: str | pathlib.Path | None, to: pathlib.Path) -> dict[str, Any]:
    """Copies a tokenizer and what belongs to it; returns the fields of config.json that do."""
    if source is None:
        return {}
    source = pathlib.Path(source)
    files = [source / name for name in CARRIED_FILES if (source / name).exists()]
    if not files:
        raise ValueError(f"tokenizer_from={source}: no tokenizer is there")
    for file in files:
        shutil.copyfile(file, to / file.name)
    if (source / CARRIED_FOLDER).is_dir():
        shutil.copytree(source / CARRIED_FOLDER, to / CARRIED_FOLDER)
    if not (source / "config.json").exists():
        return {}
    raw = read_json(source / "config.json")
    raw = raw.get("text_config", {}) | raw
    return {name: raw[name] for name in CARRIED if name in raw}
