"""The models that runs begin with and end with: Hugging Face folders, or new ones."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import tyro

from jrl.data import tokens
from jrl.data.schemas import Record
from jrl.lm import byte_tokenizer, huggingface, lora, tokenizer, transformer
from jrl.lm.config import Config
from jrl.lm.policy import Policy
from jrl.lm.safetensors_files import read_json
from jrl.lm.tokenizer import Tokenizer
from jrl.lm.transformer import Transformer
from jrl.types import Key, Params

__all__ = [
    "Model",
    "Opened",
    "adapted",
    "classifier",
    "open_model",
    "outline",
    "saver",
]

SMALL = Config(vocab_size=259, tied=False)
"""A model of bytes for a laptop."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Which model a run begins with, and what of it is trained."""

    folder: str | None = None
    """A Hugging Face folder; None for a new model of bytes."""
    sizes: Config = SMALL
    """Of a new model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes anew: nothing, all but matrix products, or whole blocks."""
    attention: Literal["auto", "own", "cudnn"] = "auto"
    """Which attention trains; cudnn needs a GPU and a half-precision `compute_dtype`."""
    lora_rank: int = 0
    """Rank of the adapters that are trained instead of the parameters; 0 for none."""
    lora_alpha: float = 16.0
    """Adapters are multiplied by lora_alpha / lora_rank."""
    lora_targets: str = ""
    """Regular expression for the kernels that are adapted; all if empty."""
    chat: bool = False
    """Make a prompt that is a text the user's turn in the folder's chat template."""
    system: str = ""
    """What the system says before that turn."""
    made_by: tyro.conf.Suppress[str] = ""
    """The command that makes the folder, for whoever has not run it yet."""

    def validate(self, name: str = "model") -> None:
        """Raises ValueError with one line that names the field and the fix; loads no weights."""
        if self.folder is None:
            self.sizes.validate()
        else:
            folder = pathlib.Path(self.folder)
            if not (folder / "config.json").exists():
                hint = f"run `{self.made_by}` first" if self.made_by else "name a model's folder"
                raise ValueError(f"{name}.folder: {folder} has no config.json: {hint}")
            sizes = huggingface.config_from(read_json(folder / "config.json"))
            tokenizer.check_vocabulary(tokenizer.load(folder), sizes.vocab_size)
        if self.lora_rank < 0:
            raise ValueError(f"{name}.lora_rank must be at least 0, got {self.lora_rank}")


class Opened(NamedTuple):
    """A model in memory, and what goes with it."""

    source: Model
    model: Transformer
    params: Params
    tokenizer: Tokenizer

    def prompt_ids(self, record: Record) -> list[int]:
        """Returns the tokens that the model is asked with: those up to where its answer begins."""
        prompt = record["prompt"]
        if isinstance(prompt, list):
            return self.tokenizer.apply_chat(prompt)
        if self.source.chat:
            return self.tokenizer.apply_chat(self._turns(prompt))
        return self.tokenizer.encode(prompt, add_special_tokens=True)

    def encoder(self, schema: Any) -> tokens.Encoder:
        """Returns what makes examples for training of records of a schema."""

        def chat(messages):
            return tokenizer.encode_chat(self.tokenizer, messages)

        def answer(prompt: str, completion: str):
            if self.source.chat:
                return chat([*self._turns(prompt), {"role": "assistant", "content": completion}])
            return tokenizer.encode_completion(self.tokenizer, prompt, completion)

        return tokens.encoder(schema, answer, chat)

    def _turns(self, prompt: str) -> list[dict[str, str]]:
        system = self.source.system
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": prompt}]


def outline(source: Model) -> Opened:
    """Returns a model with shapes for parameters, all that is there to be checked without them.

    Raises ValueError for a folder that is none, and for adapters that do not fit.
    """
    if source.folder is None:
        words, sizes = tokenizer.bytes_tokenizer(), source.sizes
    else:
        words = tokenizer.load(source.folder)
        sizes = huggingface.config_from(read_json(pathlib.Path(source.folder) / "config.json"))
    tokenizer.check_vocabulary(words, sizes.vocab_size)
    model = transformer.make(sizes)
    opened = Opened(source, model, jax.eval_shape(model.init, jax.random.key(0)), words)
    jax.eval_shape(lambda key: adapted(opened, key)[1], jax.random.key(0))
    return opened


def open_model(source: Model, key: Key) -> Opened:
    """Loads a model, or makes a new one with `key`. Raises ValueError for a folder that is none."""
    if source.folder is None:
        words, sizes, params = tokenizer.bytes_tokenizer(), source.sizes, None
    else:
        words = tokenizer.load(source.folder)
        sizes, params = huggingface.load(source.folder, source.dtype)
    tokenizer.check_vocabulary(words, sizes.vocab_size)
    sizes = dataclasses.replace(sizes, remat=source.remat, attention=source.attention)
    model = transformer.make(sizes)
    if params is None:
        params = jax.tree.map(lambda x: x.astype(source.dtype), jax.jit(model.init)(key))
    return Opened(source, model, params, words)


def adapted(opened: Opened, key: Key) -> tuple[Policy, Params, Params]:
    """Returns a policy, its parameters that are trained, and the base that they are added to.

    Without adapters the parameters are the model's, and the base is ().
    """
    source, params = opened.source, opened.params
    if not source.lora_rank:
        return Policy(opened.model), params, ()
    scale = source.lora_alpha / source.lora_rank

    def merge(adapters, base):
        return lora.merge(base, adapters, scale)

    adapters = lora.init(key, params, source.lora_rank, source.lora_targets)
    return Policy(opened.model, merge), adapters, params


def classifier(opened: Opened) -> Params:
    """Returns a reward model's {"trunk", "score"}. Raises ValueError for another model."""
    trunk = dict(opened.params)
    if "score" not in trunk:
        raise ValueError(
            f"reward_model.folder: {opened.source.folder} has no head for scores: "
            "name the folder of a reward model"
        )
    return {"score": trunk.pop("score"), "trunk": trunk}


def saver(opened: Opened) -> Callable[[Params, pathlib.Path], None]:
    """Returns what writes parameters to a folder that can be opened again, served or sampled from.

    Parameters {"trunk", "score"} become a classifier of one label, as reward models are published.
    """

    config, source = opened.model.config, opened.source.folder

    def save(params: Params, folder: pathlib.Path) -> None:
        sizes = config
        if "score" in params:
            # A classifier has no head for tokens.
            trunk = {name: x for name, x in params["trunk"].items() if name != "head"}
            params = {**trunk, "score": params["score"]}
            sizes = dataclasses.replace(sizes, tied=True)
        with tempfile.TemporaryDirectory() as scratch:
            if source is None:
                byte_tokenizer.save(scratch)
            huggingface.save(folder, sizes, params, None, source or scratch, overwrite=True)

    return save
