"""Schemas of records: which columns a line of data has, and what may be in them.

| schema | columns | for |
|---|---|---|
| `preference` | `chosen`, `rejected` and mostly `prompt` | reward models, DPO |
| `messages` | `messages`: a list of `{"role", "content"}` | fine-tuning on chats |
| `completion` | `prompt`, `completion` | fine-tuning |
| `question_answer` | `question`, `answer` (GSM8K): a prompt and its completion | both |
| `prompt` | `prompt` | RL, with what the reward needs in other columns |
| `text` | `text` | pretraining |

A prompt is a string, or a list of messages whose answer is a list of messages too. Columns of
other names are kept as they are.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

__all__ = ["Columns", "Record", "SCHEMAS", "Schema", "check", "detect", "select"]

Record = dict[str, Any]

Columns = Mapping[str, str | Callable[[Record], Any]]
"""New column -> the old column's name, or a function of the record."""

Schema = Literal["preference", "messages", "completion", "question_answer", "prompt", "text"]

SCHEMAS: dict[Schema, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "question_answer": ("question", "answer"),
    "prompt": ("prompt",),
    "text": ("text",),
}
"""The columns that each schema cannot do without, in the order in which they are looked for."""

TURN = "\n\nAssistant:"
"""What comes before every answer in transcripts of the kind that Anthropic's hh-rlhf holds."""


def select(record: Record, columns: Columns | None) -> Record:
    """Adds columns under new names: from an old name, or by a function of the record.

    Args: `columns`: new name -> old name, or function of the record; None for none.
    Returns: a new record with the old columns too.
    Raises: ValueError when an old name does not exist or a function fails.

    >>> select({"q": "1+1"}, {"prompt": lambda record: record["q"] + "="})
    {'q': '1+1', 'prompt': '1+1='}
    """
    selected = dict(record)
    for new, old in (columns or {}).items():
        if callable(old):
            try:
                selected[new] = old(record)
            except Exception as error:
                raise ValueError(f"{new}: {type(error).__name__}: {error}") from error
        elif old in record:
            selected[new] = record[old]
        else:
            raise ValueError(f"no column {old!r} to make {new!r} of, only {_names(record)}")
    return selected


def detect(record: Record) -> Schema:
    """Finds the schema by the columns of a record.

    Returns: the first of `SCHEMAS` whose columns the record has.
    Raises: ValueError when there is none.

    >>> detect({"question": "How many?", "answer": "Two. #### 2"})
    'question_answer'
    """
    for schema, columns in SCHEMAS.items():
        if record.keys() >= set(columns):
            return schema
    known = "; ".join(", ".join(columns) for columns in SCHEMAS.values())
    raise ValueError(
        f"columns {_names(record)} are of no known schema ({known}): pass `columns` to rename them"
    )


def check(record: Record, schema: Schema) -> Record:
    """Checks the types of a record's columns and completes them.

    Args: `schema`: one of `SCHEMAS`.
    Returns: the record. GSM8K's columns are repeated as `prompt` and `completion`; a pair without
    a prompt gets it from what `chosen` and `rejected` share: leading messages, or a transcript up
    to the last common "\\n\\nAssistant:".
    Raises: ValueError that names the column and what is wrong with it.

    >>> pair = {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello", "rejected":
    ...         "\\n\\nHuman: Hi\\n\\nAssistant: What?"}
    >>> check(pair, "preference")["prompt"], check(pair, "preference")["chosen"]
    ('\\n\\nHuman: Hi\\n\\nAssistant:', ' Hello')
    """
    if schema not in SCHEMAS:
        raise ValueError(f"schema must be one of {', '.join(SCHEMAS)}, got {schema!r}")
    missing = [column for column in SCHEMAS[schema] if column not in record]
    if missing:
        raise ValueError(f"no column {missing[0]!r} ({schema}), only {_names(record)}")
    if schema == "messages":
        _check_messages("messages", record["messages"])
        if not any(message["role"] == "assistant" for message in record["messages"]):
            raise ValueError("messages: none has the role 'assistant', there is nothing to learn")
    elif schema == "text":
        _check_text("text", record["text"])
    elif schema == "question_answer":
        record = {**record, "prompt": record["question"], "completion": record["answer"]}
    elif schema == "preference" and "prompt" not in record:
        record = {**record, **_shared_prompt(record["chosen"], record["rejected"])}
    if "prompt" in record:
        _check_prompt(record["prompt"])
        for column in ("completion", "chosen", "rejected"):
            if column in record:
                _check_answer(column, record[column], record["prompt"])
    return record


def _check_prompt(prompt: Any) -> None:
    if not isinstance(prompt, list):
        _check_text("prompt", prompt)
        return
    _check_messages("prompt", prompt)
    if prompt[-1]["role"] == "assistant":
        raise ValueError("prompt: the last message is the assistant's, which belongs to the answer")


def _check_answer(column: str, answer: Any, prompt: Any) -> None:
    if isinstance(prompt, list):
        _check_messages(column, answer)
    elif not isinstance(answer, str):
        raise ValueError(f"{column} must be a string as the prompt is, got {_kind(answer)}")


def _check_text(column: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{column} must be a string, got {_kind(text)}")
    if not text:
        raise ValueError(f"{column} is empty")


def _check_messages(column: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{column} must be a list of messages, not empty, got {_kind(messages)}")
    for n, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{column}[{n}] must be an object with a 'role', got {_kind(message)}")
        content = message.get("content")
        # A message that only calls tools has no content.
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise ValueError(f"{column}[{n}].content must be a string, got {_kind(content)}")


def _shared_prompt(chosen: Any, rejected: Any) -> Record:
    if isinstance(chosen, list) and isinstance(rejected, list):
        pairs = zip(chosen, rejected, strict=False)
        end = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
        # What both answer with is still an answer.
        end = min(end, len(chosen) - 1, len(rejected) - 1)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        shared = os.path.commonprefix([chosen, rejected])
        end = shared.rfind(TURN) + len(TURN) if TURN in shared else 0
    else:
        raise ValueError("chosen and rejected must both be strings or both lists of messages")
    if end < 1:
        raise ValueError(
            "no column 'prompt', and chosen and rejected do not begin with a common one"
        )
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _names(record: Record) -> str:
    return ", ".join(map(repr, record)) or "none"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {str(value)[:40]!r}")
