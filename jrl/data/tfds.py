"""tensorflow-datasets: any data set of it, as records, without tensorflow.

Data are read by random access from ArrayRecord files. Text comes decoded, numbers as Python's.
"""

import contextlib
import importlib
import os
from types import ModuleType
from typing import Any

import numpy as np

from jrl.data import schemas
from jrl.data.schemas import Columns, Record, Schema

__all__ = ["TfdsSource", "library", "load", "read"]

GROUPS = ("text", "question_answering", "summarization", "translate", "structured")
"""Its packages that hold texts. It registers all of them at once but stops at the first that misses
a library of its own, so they are imported one by one."""


def library() -> ModuleType:
    """Imports tensorflow-datasets. Raises ImportError naming the extra if it is missing.

    >>> library().__name__
    'tensorflow_datasets'
    """
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError("these data need tensorflow-datasets: pip install 'jrl[data]'") from error


class TfdsSource:
    """Records of one split; made by `read` and `load`."""

    def __init__(self, name: str, examples: Any, columns: Columns | None, schema: Schema | None):
        self.name = name
        self.columns = columns
        self._examples = examples
        self.schema: Schema = schema or schemas.detect(self._select(0))
        self[0]

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        """Returns a record; raises ValueError naming it if it is not of the schema."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.name}")
        try:
            return schemas.check(self._select(index), self.schema)
        except ValueError as error:
            raise ValueError(f"{self.place(index)}: {error}") from error

    def place(self, index: int) -> str:
        """Says where a record comes from: data set, split and number."""
        return f"{self.name}, record {index}"

    def _select(self, index: int) -> Record:
        return schemas.select(_plain(self._examples[index]), self.columns)


def load(
    name: str,
    split: str = "train",
    columns: Columns | None = None,
    schema: Schema | None = None,
    directory: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> TfdsSource:
    """Opens a data set of tensorflow-datasets by its name.

        load("gsm8k", "train", {"prompt": "question", "completion": "answer"})

    Args: `name`: "name", "name/config" or "name/config:version"; `split`: also part of one,
    "train[:90%]"; `columns`: new name -> old name or function of the record (`schemas.select`);
    `schema`: None to detect it; `directory`: where prepared data sets are, by default
    tensorflow-datasets' own place; `download`: whether to fetch and prepare what is not there.
    Returns: a source with random access.
    Raises: ValueError in one line for an unknown name, split or schema; FileNotFoundError when the
    data are not prepared and `download` is false, or cannot be downloaded.
    """
    tfds = library()
    for group in GROUPS:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{group}")
    place = None if directory is None else os.fspath(directory)
    try:
        builder = tfds.builder(name, data_dir=place)
    except Exception as error:
        raise ValueError(f"{name}: {_first_line(error)}") from error
    # What is being prepared is elsewhere until it is whole.
    if not builder.data_path.exists():
        _prepare(tfds, name, builder, download)
    return read(builder, split, columns, schema)


def read(
    builder: Any, split: str, columns: Columns | None = None, schema: Schema | None = None
) -> TfdsSource:
    """Opens a split of a data set that a builder has prepared.

    Args: `builder`: a `tfds.core.DatasetBuilder`; the others as in `load`.
    Returns: a source with random access. Raises: ValueError in one line for an unknown split, for
    one without records, and for files of a format without random access.
    """
    name = f"{builder.info.full_name}, {split}"
    if split.split("[")[0] not in builder.info.splits:
        raise ValueError(f"{name}: there is no such split, only {', '.join(builder.info.splits)}")
    try:
        examples = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(
            f"{name}: prepared as {builder.info.file_format.value}, which has no random access: "
            "prepare it in another directory"
        ) from error
    except Exception as error:
        raise ValueError(f"{name}: {_first_line(error)}") from error
    if not len(examples):
        raise ValueError(f"{name}: the split has no records")
    return TfdsSource(name, examples, columns, schema)


def _prepare(tfds: ModuleType, name: str, builder: Any, download: bool) -> None:
    if not download:
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir}: pass download=True, "
            "or the directory where it is"
        )
    tfds.enable_progress_bar()
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir} and could not be downloaded: "
            f"{_first_line(error)}"
        ) from error


def _plain(value: Any) -> Any:
    """Turns decoded features into what JSON has: str, int, float, bool, list and dict."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return value


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
