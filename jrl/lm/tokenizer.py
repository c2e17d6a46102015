"""Text and token ids: the tokenizer of a Hugging Face folder, one of plain bytes, and chats.

A completion is token ids from the sampler to the loss. Text is made of it for people and for
rewards, and never turned back into ids: the ids of a text that was decoded are often others than
those that were drawn, and other ids have other probabilities.
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jrl.lm.chat_templates import read_templates, renderer

__all__ = [
    "Message",
    "Stream",
    "Tokenizer",
    "bytes_tokenizer",
    "check_vocabulary",
    "encode_chat",
    "encode_completion",
    "load",
]

Message = dict[str, Any]
"""One turn of a chat: `{"role": "user", "content": "..."}`, and what else the template reads."""

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoders put in place of bytes that are no whole character (yet)."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Turns text into token ids and back, and chats into prompts.

    `load` and `bytes_tokenizer` make one; `dataclasses.replace` changes what a folder says, for
    example `eos_ids`. The first three fields are what the methods call.
    """

    to_ids: Callable[[str, bool], list[int]]
    to_text: Callable[[list[int], bool], str]
    to_chat: Callable[..., str]
    vocab_size: int
    """The highest id + 1. A model may have more: rows that pad its embedding."""
    eos_ids: tuple[int, ...]
    """Every id that ends a completion; the tokenizer's own end-of-sequence token first."""
    bos_id: int | None
    pad_id: int
    """Fills what a mask hides; the end-of-sequence token where the folder names none."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Returns the ids of a text. Special tokens written in it become what they are.

        `add_special_tokens` adds what the folder puts around a text: the beginning-of-sequence
        token of Llama and Gemma, which models expect before a prompt that is no chat. Chat
        templates write it themselves.
        """
        return self.to_ids(text, add_special_tokens)

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """Returns the text of ids: a list, or an array of one axis, on any device.

        Bytes that are no character become U+FFFD; ids beyond the vocabulary have no text.
        """
        return self.to_text(np.asarray(ids, np.int64).tolist(), skip_special_tokens)

    def render_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Returns the text of a chat, to its end or up to where the assistant's next turn begins.

        `variables` are for the template: `tools=[...]`, `enable_thinking=False`. Raises ValueError
        if there are no messages, if one has no role, or if the template refuses them.

        >>> bytes_tokenizer().render_chat([{"role": "user", "content": "2+2?"}])
        '<bos>user\\n2+2?<eos><bos>assistant\\n'
        """
        if not messages:
            raise ValueError("messages: empty, give at least one")
        for message in messages:
            if "role" not in message:
                raise ValueError(
                    f'messages: {message!r} must be like {{"role": "user", "content": "..."}}'
                )
        return self.to_chat(list(messages), add_generation_prompt, **variables)

    def apply_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Returns the ids of `render_chat`, to which nothing is added."""
        return self.encode(self.render_chat(messages, add_generation_prompt, **variables))


class Stream:
    """Turns token ids into text as they arrive and holds back what is half a character.

    The pieces, joined, are the text of all ids.

    >>> stream = Stream(bytes_tokenizer())
    >>> [stream.push(i) for i in "aé!".encode()], stream.end()
    (['a', '', 'é', '!'], '')
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._decode = functools.partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        # The ids of the last piece stay, because decoders treat a text's first token unlike the
        # others: some drop its space.
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        """Returns the text that one more token completes, often none."""
        self._held.append(int(token_id))
        piece = self.end()
        if piece.endswith(UNFINISHED):
            return ""
        if piece:
            self._context, self._held = self._held, []
        return piece

    def end(self) -> str:
        """Returns what is held back: when no more tokens come it stays unfinished."""
        return self._decode(self._context + self._held)[len(self._decode(self._context)) :]


def bytes_tokenizer() -> Tokenizer:
    """Makes a tokenizer of the 256 bytes and `<pad>`, `<bos>`, `<eos>`: 259 ids and no files.

    A chat is `<bos>role\\ncontent<eos>` for each message, so that the assistant's turn ends with
    the end-of-sequence token as a plain completion does.

    >>> tokenizer = bytes_tokenizer()
    >>> tokenizer.encode("hé<eos>")
    [104, 195, 169, 258]
    >>> tokenizer.decode([104, 195, 169, 258]), tokenizer.decode([104, 195])
    ('hé', 'h\ufffd')
    """
    special = {"<pad>": 256, "<bos>": 257, "<eos>": 258}
    names = {i: name for name, i in special.items()}
    parts = re.compile("(" + "|".join(special) + ")")

    def to_ids(text, add_special_tokens):
        ids = [257] if add_special_tokens else []
        for part in parts.split(text):
            ids.extend([special[part]] if part in special else part.encode())
        return ids

    def to_text(ids, skip_special_tokens):
        if skip_special_tokens:
            ids = [i for i in ids if i < 256]
        pieces = (bytes([i]) if i < 256 else names.get(i, "").encode() for i in ids)
        return b"".join(pieces).decode(errors="replace")

    def to_chat(messages, add_generation_prompt):
        turns = [f"<bos>{turn['role']}\n{turn.get('content') or ''}<eos>" for turn in messages]
        return "".join(turns) + "<bos>assistant\n" * add_generation_prompt

    return Tokenizer(to_ids, to_text, to_chat, 259, (258,), 257, 256)


def load(
    folder: str | pathlib.Path,
    chat_template: str | None = None,
    strftime_now: Callable[[str], str] | None = None,
) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face folder, with its chat template and all its stop ids.

    It reads `tokenizer.json`; special tokens and the chat template of `tokenizer_config.json` (a
    string or a list of named ones), `chat_template.jinja` and `additional_chat_templates/`; and
    the end-of-sequence ids of `generation_config.json`, or of `config.json` if it has none.

    Args:
        folder: a local folder.
        chat_template: text of a template, or the name of one of the folder's, to use instead of
            `default` (or of `tool_use` where there is one and `tools` are given).
        strftime_now: what gives templates today's date, `time.strftime` for example. Without one
            those of Llama 3 write the date that stands in them: prompts that change with the day
            would make a run that cannot be repeated.

    Raises: ValueError for files that are missing, broken or do not fit together, and for a folder
    without an end-of-sequence token; ImportError if `tokenizers` is missing.
    Deviations: ids and rendered chats are those of transformers' tokenizers; text is decoded
    exactly, also where `clean_up_tokenization_spaces` would take spaces away before punctuation.
    """
    folder = pathlib.Path(folder)
    config = _read_json(folder / "tokenizer_config.json")
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    named = _special_tokens(tokenizer, config)

    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    named_ids = {key: vocabulary[token] for key, token in named.items()}
    eos_ids = _eos_ids(folder, named_ids.get("eos_token"))

    def to_ids(text, add_special_tokens):
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def to_text(ids, skip_special_tokens):
        return tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    return Tokenizer(
        to_ids,
        to_text,
        renderer(read_templates(folder, config), chat_template, named, strftime_now),
        max(vocabulary.values()) + 1,
        eos_ids,
        named_ids.get("bos_token"),
        named_ids.get("pad_token", eos_ids[0]),
    )


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ValueError if the tokenizer can produce, or waits for, an id that the model has not.

    A model may have more ids than its tokenizer: many pad their embedding to a round number.

    >>> check_vocabulary(bytes_tokenizer(), 256)
    Traceback (most recent call last):
    ValueError: vocab_size: the model has 256 ids and its tokenizer 259, use those of one folder
    """
    needed = max(tokenizer.vocab_size, *(i + 1 for i in tokenizer.eos_ids), tokenizer.pad_id + 1)
    if needed > vocab_size:
        raise ValueError(
            f"vocab_size: the model has {vocab_size} ids and its tokenizer {needed}, "
            "use those of one folder"
        )


def encode_completion(
    tokenizer: Tokenizer, prompt: str, completion: str
) -> tuple[list[int], list[bool]]:
    """Encodes an example of plain text for supervised training: ids, and which are the completion.

    The prompt begins as `add_special_tokens` says, the completion ends with `eos_ids[0]`. Each is
    encoded by itself, so that the prompt has the ids it will have when the model is asked.

    >>> encode_completion(bytes_tokenizer(), "1+1=", "2")
    ([257, 49, 43, 49, 61, 50, 258], [False, False, False, False, False, True, True])
    """
    before = tokenizer.encode(prompt, add_special_tokens=True)
    after = [*tokenizer.encode(completion), tokenizer.eos_ids[0]]
    return before + after, [False] * len(before) + [True] * len(after)


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], **variables: Any
) -> tuple[list[int], list[bool]]:
    """Encodes a chat for supervised training: ids, and which of them the assistant is to produce.

    Those are, of every turn of the assistant, what follows the generation prompt up to and with
    the first end-of-sequence token, where a sampler would stop; the line break that many templates
    write after it is not among them. The text is encoded in pieces that are cut there, so that
    the first prompt has exactly the ids of `apply_chat`.

    Raises: ValueError if no message is the assistant's, if it has the first one, if a turn has no
    end-of-sequence token (the model would never learn to stop), and if the template writes earlier
    turns differently when later ones follow, as Qwen3's does with thoughts: what would be learned
    is then not what the model is asked.

    >>> chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    >>> ids, mask = encode_chat(bytes_tokenizer(), chat)
    >>> [i for i, ours in zip(ids, mask) if ours]
    [33, 258]
    """
    whole = tokenizer.render_chat(messages, add_generation_prompt=False, **variables)
    ids: list[int] = []
    mask: list[bool] = []
    done = 0
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or turns[0] == 0:
        raise ValueError("messages: the assistant must answer, and may not have the first turn")
    for n in turns:
        prompt = tokenizer.render_chat(messages[:n], True, **variables)
        answered = tokenizer.render_chat(messages[: n + 1], False, **variables)
        if not (whole.startswith(answered) and answered.startswith(prompt) and done <= len(prompt)):
            raise ValueError(
                f"messages: the chat template changes what precedes or makes up turn {n} when "
                "more follows, split the chat so that each example has one turn of the assistant"
            )
        before = tokenizer.encode(prompt[done:])
        answer = tokenizer.encode(answered[len(prompt) :])
        ends = [place for place, i in enumerate(answer) if i in tokenizer.eos_ids]
        if not ends:
            raise ValueError(
                f"messages: turn {n} ends without any of eos_ids={tokenizer.eos_ids}, give the "
                "tokenizer the id that the chat template ends a turn with"
            )
        ids += before + answer
        mask += [False] * len(before) + [place <= ends[0] for place in range(len(answer))]
        done = len(answered)
    rest = tokenizer.encode(whole[done:])
    return ids + rest, mask + [False] * len(rest)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a JSON file holds, nothing if there is none."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_tokenizer(path: pathlib.Path):
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("tokenizer.json needs tokenizers: pip install 'jrl[lm]'") from error
    if not path.exists():
        raise ValueError(
            f"{path}: missing, give a folder that a fast tokenizer of transformers was saved to"
        )
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # It raises nothing more specific.
        raise ValueError(f"{path}: {error}") from error
    # Settings of whoever saved it, which would cut or fill every text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_tokens(tokenizer, config: dict[str, Any]) -> dict[str, str]:
    """Makes sure that the tokens which the config names are special; returns their texts."""
    from tokenizers import AddedToken

    def text(token):
        return token["content"] if isinstance(token, dict) else token

    listed = sorted((int(i), token) for i, token in config.get("added_tokens_decoder", {}).items())
    for i, token in listed:
        if tokenizer.token_to_id(token["content"]) is None:
            flags = {key: value for key, value in token.items() if key != "__type"}
            tokenizer.add_tokens([AddedToken(**flags)])
        if tokenizer.token_to_id(token["content"]) != i:
            raise ValueError(
                f"tokenizer_config.json: {token['content']!r} has id {i}, but "
                f"{tokenizer.token_to_id(token['content'])} in tokenizer.json"
            )
    named = {
        key: text(token)
        for key, token in config.items()
        if re.fullmatch("(bos|eos|pad|unk|sep|cls|mask)_token", key) and token is not None
    }
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for key, token in named.items():
        if tokenizer.token_to_id(token) is None:
            raise ValueError(f"tokenizer_config.json: {key} {token!r} is not in tokenizer.json")
        if token not in added:
            tokenizer.add_special_tokens([token])
    return named


def _eos_ids(folder: pathlib.Path, eos_id: int | None) -> tuple[int, ...]:
    """Returns every id that ends a completion, that of the tokenizer first."""
    generation = _read_json(folder / "generation_config.json")
    if generation.get("eos_token_id") is None:
        generation = _read_json(folder / "config.json")
    found = generation.get("eos_token_id")
    found = [eos_id, *(found if isinstance(found, list) else [found])]
    eos_ids = tuple(dict.fromkeys(i for i in found if i is not None))
    if not eos_ids:
        raise ValueError(
            f"{folder}: no end-of-sequence token, name eos_token in tokenizer_config.json"
        )
    return eos_ids
