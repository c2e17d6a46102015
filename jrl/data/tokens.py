"""Tokens of a record, and which of them are learnt: the completion's, never the prompt's.

How text becomes tokens is for the functions that an encoder is made of; each returns token ids and
as many booleans, true for what is to be predicted. The first token never is: nothing comes before
it to predict it from, and in a packed row what does is another example.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jrl.data.schemas import SCHEMAS, Record, Schema

__all__ = [
    "Answer",
    "Chat",
    "Encoder",
    "Marked",
    "Tokens",
    "TooLong",
    "completion",
    "encoder",
    "fit",
]

Marked = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and which of them are to be predicted."""

Answer = Callable[[str, str], Marked]
"""(prompt, completion) -> the tokens of both."""

Chat = Callable[[list[Record]], Marked]
"""messages -> the tokens of the conversation; to be predicted are the assistant's turns."""

TooLong = Literal["error", "drop", "truncate"]


class Tokens(NamedTuple):
    """One sequence: `tokens` [n] int32, and `mask` [n] bool, true for what is to be predicted."""

    tokens: np.ndarray
    mask: np.ndarray


class Encoder(NamedTuple):
    """How a record becomes tokens, and the names of the sequences that it becomes.

    `names` is empty for one sequence, `("chosen", "rejected")` for a pair.
    """

    names: tuple[str, ...]
    apply: Callable[[Record], tuple[Tokens, ...]]


def completion(
    encode: Callable[[str], Sequence[int]], start: Sequence[int] = (), end: Sequence[int] = ()
) -> Answer:
    """Makes the function for prompts and completions that are strings.

        tokens = [start | encode(prompt) | encode(completion) | end],    learnt from completion on

    The two are encoded apart, as they are in RL, where the completion is drawn after the prompt's
    tokens. Args: `encode`: text -> ids without special tokens; `start`, `end`: ids put at both
    ends, the end of the sequence among what is learnt.

    >>> completion(lambda text: list(text.encode()), end=[0])("1+1=", "2")
    ([49, 43, 49, 61, 50, 0], [False, False, False, False, True, True])
    """

    def answer(prompt, text):
        before, after = [*start, *encode(prompt)], [*encode(text), *end]
        return before + after, [False] * len(before) + [True] * len(after)

    return answer


def encoder(schema: Schema, answer: Answer | None = None, chat: Chat | None = None) -> Encoder:
    """Makes the encoder of a schema.

    Args: `answer` for prompts and completions that are strings (of the schema `text` it is given
    an empty prompt), `chat` for lists of messages. `jrl.lm.tokenizer` has both.
    Returns: an `Encoder`; applied to a record it raises ValueError when the function that it needs
    is missing or refuses the record, or when there is nothing to learn. After a prompt of messages
    only the answer's turns are learnt.
    Raises: ValueError for the schema `prompt`, whose completions are still to be drawn.

    >>> to_tokens = encoder("text", completion(lambda text: list(text.encode()))).apply
    >>> to_tokens({"text": "abc"})
    (Tokens(tokens=array([97, 98, 99], dtype=int32), mask=array([False,  True,  True])),)
    """
    if schema not in SCHEMAS or schema == "prompt":
        raise ValueError(f"schema {schema!r} has no completions to encode")
    answer, chat = answer or _missing("answer"), chat or _missing("chat")

    def one(record, column):
        prompt, text = record["prompt"], record[column]
        if not isinstance(prompt, list):
            return _tokens(*answer(prompt, text))
        ids, mask = chat([*prompt, *text])
        turns = sum(message["role"] == "assistant" for message in text)
        return _tokens(ids, _last_runs(mask, turns))

    if schema == "preference":
        return Encoder(
            ("chosen", "rejected"), lambda record: (one(record, "chosen"), one(record, "rejected"))
        )
    if schema == "messages":
        return Encoder((), lambda record: (_tokens(*chat(record["messages"])),))
    if schema == "text":
        return Encoder((), lambda record: (_tokens(*answer("", record["text"])),))
    return Encoder((), lambda record: (one(record, "completion"),))


def fit(
    parts: Sequence[Tokens], length: int, too_long: TooLong = "error"
) -> tuple[tuple[Tokens, ...] | None, bool]:
    """Makes the sequences of one record fit into a row of `length` tokens.

    Args: `too_long`: "error" refuses, "drop" leaves the whole record out, "truncate" keeps the
    first `length` tokens, or drops the record too if a sequence has no token to learn among them.
    Returns: the sequences, None if dropped; and whether anything was cut off.
    Raises: ValueError with the lengths for "error".

    >>> tokens = Tokens(np.arange(5, dtype=np.int32), np.array([False, False, True, True, True]))
    >>> fit([tokens], 3, "truncate")
    ((Tokens(tokens=array([0, 1, 2], dtype=int32), mask=array([False, False,  True])),), True)
    >>> fit([tokens], 2, "truncate")
    (None, False)
    """
    longest = max(part.tokens.size for part in parts)
    if longest <= length:
        return tuple(parts), False
    if too_long == "error":
        raise ValueError(
            f"{longest} tokens do not fit into length={length}: "
            "raise it, or choose too_long='drop' or 'truncate'"
        )
    cut = tuple(Tokens(part.tokens[:length], part.mask[:length]) for part in parts)
    if too_long == "drop" or not all(part.mask.any() for part in cut):
        return None, False
    return cut, True


def _tokens(ids: Sequence[int], marked: Sequence[bool] | np.ndarray) -> Tokens:
    mask = np.array(marked, bool)
    mask[:1] = False
    if not mask.any():
        raise ValueError("there is no token to learn: the completion is empty")
    return Tokens(np.asarray(ids, np.int32), mask)


def _last_runs(mask: Sequence[bool], count: int) -> np.ndarray:
    """Keeps the last `count` runs of a mask: a turn is one, what a template puts between is not."""
    marked = np.asarray(mask, bool)
    run = np.cumsum(np.diff(marked, prepend=False) & marked)
    return marked & (run > run[-1] - count)


def _missing(name: str):
    def refuse(*_):
        raise ValueError(f"the record needs `{name}`, which the encoder was made without")

    return refuse
