"""What tasks have in common: splits that share no prompt, and files prepared once.

Example i of a split depends on the seed and on i alone, so a larger data set begins with the
smaller one. Which split a prompt belongs to depends on the prompt alone: no prompt of a test split
is in a training split, whatever their sizes, seeds and configurations.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jrl.data import tfds
from jrl.data.schemas import Record
from jrl.data.tfds import TfdsSource
from jrl.types import check_sizes

__all__ = ["Sizes", "Task", "builder", "cache_directory", "generate", "load"]

TEST_SHARE = 0.1
"""Of all prompts that are possible; how many examples are drawn with them is for `Sizes`."""

MAX_DRAWS = 10_000
"""How many prompts are drawn for one example before its split is taken to have none."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The base of every task's `Config`: how many examples, and from which seed."""

    train: int = 10_000
    test: int = 1_000
    seed: int = dataclasses.field(default=0, metadata={"may_be_zero": True})


class Task(NamedTuple):
    """A task: how an example is drawn, and what its columns hold.

    `version` is raised whenever the examples of a `Config` change. `columns` are pairs of a name
    and `str`, `int`, `float` or `list` (of integers).
    """

    name: str
    version: str
    columns: tuple[tuple[str, type], ...]
    example: Callable[[np.random.Generator, Any], Record]


def cache_directory() -> pathlib.Path:
    """Returns where tasks are prepared: `$XDG_CACHE_HOME/jrl/tfds`, else `~/.cache/jrl/tfds`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "jrl" / "tfds"


def generate(task: Task, config: Sizes, split: str) -> Iterator[Record]:
    """Draws the examples of a split.

    Args: `split`: "train" or "test". Yields: as many records as `config` says.
    Raises: ValueError when the configuration has no prompt for the split.
    """
    for index in range(getattr(config, split)):
        # The keys of no two examples, splits or seeds are alike.
        rng = np.random.default_rng([config.seed, index, ("train", "test").index(split)])
        draws = (task.example(rng, config) for _ in range(MAX_DRAWS))
        record = next((record for record in draws if _split(record["prompt"]) == split), None)
        if record is None:
            raise ValueError(
                f"{task.name}: none of {MAX_DRAWS} prompts is for the split {split!r}: "
                "choose a config with more prompts"
            )
        yield record


def load(
    task: Task,
    config: Sizes,
    split: str = "train",
    directory: str | os.PathLike[str] | None = None,
) -> TfdsSource:
    """Opens a split of a task, preparing it on first use.

    Args: `split`: "train", "test" or part of one, "test[:100]"; `directory`: None for
    `cache_directory()`. Returns: a source with random access.
    Raises: ValueError for an unknown split or sizes that are not positive.
    """
    return tfds.read(builder(task, config, directory), split)


def builder(task: Task, config: Sizes, directory: str | os.PathLike[str] | None = None) -> Any:
    """Returns tensorflow-datasets' builder of a task, with its files prepared.

    They are written beside their place and moved there at once: whoever is killed leaves no half
    data set, and of two who prepare the same one the second uses that of the first.
    Args and Raises: as `load`. Returns: a `tfds.core.DatasetBuilder`; its configuration's
    description is `config` as JSON.
    """
    check_sizes("config", config)
    library = tfds.library()
    root = cache_directory() if directory is None else pathlib.Path(directory)
    described = json.dumps(dataclasses.asdict(config), sort_keys=True)
    name = hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
    target = root / task.name / name / task.version
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".preparing-", dir=root) as scratch:
            made = _builder_class(library, task, config, name, described)(data_dir=scratch)
            library.disable_progress_bar()
            made.download_and_prepare(file_format="array_record")
            try:
                os.rename(made.data_dir, target)
            except OSError:
                # A directory that is not empty is not replaced: another process was first.
                if not target.exists():
                    raise
    return library.builder_from_directory(os.fspath(target))


def _builder_class(library: Any, task: Task, config: Sizes, name: str, described: str) -> Any:
    features = {
        str: library.features.Text,
        int: lambda: np.int64,
        float: lambda: np.float64,
        list: lambda: library.features.Sequence(np.int64),
    }

    # Configurations are classes of one name, of which its registry would hold one.
    unregistered: dict[str, Any] = {"skip_registration": True}

    class Builder(library.core.GeneratorBasedBuilder, **unregistered):
        VERSION = library.core.Version(task.version)
        BUILDER_CONFIGS = [library.core.BuilderConfig(name=name, description=described)]

        def _info(self):
            columns = {column: features[kind]() for column, kind in task.columns}
            return library.core.DatasetInfo(
                builder=self,
                features=library.features.FeaturesDict(columns),
                # In the order of the indices.
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split):
            return enumerate(generate(task, config, split))

        def _log_download_bytes(self):
            """Prints nothing."""

        _log_download_done = _log_download_bytes

    Builder.name = task.name
    return Builder


def _split(prompt: str) -> str:
    digest = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest())
    return "test" if digest < TEST_SHARE * 2**64 else "train"
