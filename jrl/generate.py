"""Text from a language model in a Hugging Face folder: what `jrl generate` does.

One completion is written piece by piece while it is drawn; several are drawn together and written
one after another, each under a heading.
"""

import dataclasses
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from jrl.lm import generation, huggingface, requests, sampler, transformer
from jrl.lm import tokenizer as tokenizers
from jrl.lm.chat_templates import read_templates
from jrl.lm.requests import Completion, Settings
from jrl.lm.safetensors_files import read_json
from jrl.lm.tokenizer import Stream, Tokenizer
from jrl.run_directory import UsageError
from jrl.types import Params

__all__ = ["Options", "check", "run", "show"]

ROUND = 64
"""Lengths are multiples of it, so that prompts of similar length share their programs."""

EVERY = 4
"""Tokens between two pieces of a stream. On a CPU a stop costs two thirds of a token's time."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Completes prompts with a language model."""

    model: pathlib.Path
    """Folder of a Hugging Face model: Llama 3, Qwen 2 or 3, Gemma 2 or 3."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """What to answer; may be given several times; - reads standard input."""
    system: str | None = None
    """Message that the chat begins with."""
    raw: bool = False
    """Go on with the prompt as it is, although the folder has a chat template."""
    samples: int = 1
    """Completions of each prompt."""
    max_new_tokens: int = 512
    """The most tokens of a completion; the end of the model's context ends it too."""
    temperature: float = 1.0
    """What logits are divided by; 0 takes the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Then keep the most probable ones that together have this probability; 1 for all."""
    min_p: float = 0.0
    """Then keep those with this share of the largest probability; 0 for all."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text that ends a completion and is left out; may be given several times."""
    seed: int = 0
    """The same seed draws the same completions."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and cache; None for float32, but on an accelerator what config.json says."""


class Job(NamedTuple):
    """What is asked of which model."""

    sampler: sampler.Sampler
    params: Params
    tokenizer: Tokenizer
    prompts: list[list[int]]
    settings: list[Settings]


def check(options: Options) -> None:
    """Raises UsageError naming the option that does not fit; reads no file."""
    if not options.model.is_dir():
        raise UsageError(f"model: {options.model}: no such folder (models are not downloaded)")
    if not options.prompt:
        raise UsageError("prompt: give one or more, for example --prompt 'What is 2 + 2?'")
    if options.samples < 1:
        raise UsageError(f"samples must be at least 1, got {options.samples}")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"seed must be between 0 and 2^32 - 1, got {options.seed}")
    if "" in options.stop:
        raise UsageError("stop: empty, every text would end at once")
    try:
        requests.check([[0]], [_settings(options)], 1, sys.maxsize, 0)
    except ValueError as error:
        raise UsageError(str(error).removeprefix("prompts[0]: settings.")) from error


def show(text: str) -> None:
    """Writes to standard output at once; what its encoding does not have becomes "?"."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def run(options: Options, write: Callable[[str], Any] = show) -> str:
    """Completes all prompts and returns a line about it: tokens, tokens per second, finish.

    `write` is called with the text: with several pieces of it if there is one completion, and
    with a heading and a whole text for each if there are several. Tokens per second are those of
    drawing, after the model was loaded and its programs were compiled.

    Raises UsageError, before anything is written, for options that do not fit, folders that are
    no model or no tokenizer, prompts that are empty or too long, and packages that are missing.
    """
    check(options)
    began = time.perf_counter()
    try:
        job = _load(options)
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    key, loaded = jax.random.key(options.seed), time.perf_counter()
    _compile(job, key)
    compiled = time.perf_counter()
    try:
        if len(job.prompts) == 1:
            completions = [_stream(job, key, options.stop, write)]
        else:
            completions = _all(job, key, options, write)
    except KeyboardInterrupt:
        # What is said about it gets a line of its own.
        write("\n")
        raise
    seconds, tokens = time.perf_counter() - compiled, sum(len(x.tokens) for x in completions)
    count = f"{len(completions)} completions, " * (len(completions) > 1)
    finish = Counter(x.finish for x in completions)
    reasons = ", ".join(f"{n} {x}" for x, n in finish.items()) if count else completions[0].finish
    return (
        f"{count}{tokens} tokens, {tokens / seconds:.1f} tokens/s, {reasons} "
        f"(loading {loaded - began:.1f} s, compiling {compiled - loaded:.1f} s)"
    )


def _settings(options: Options) -> Settings:
    return Settings(
        options.max_new_tokens, options.temperature, options.top_k, options.top_p, options.min_p
    )


def _load(options: Options) -> Job:
    """Loads the weights last, when all that can be wrong with the rest has been looked at."""
    folder = options.model
    raw = read_json(folder / "config.json")
    vocab_size = huggingface.config_from(raw).vocab_size
    # A multimodal model says what follows about its text model alone.
    raw |= raw.get("text_config", {})
    tokenizer = tokenizers.load(folder, strftime_now=time.strftime)
    tokenizers.check_vocabulary(tokenizer, vocab_size)
    context = raw.get("max_position_embeddings") or sys.maxsize
    prompts, settings = _requests(options, tokenizer, context)
    half = (
        jax.default_backend() != "cpu"
        and (raw.get("dtype") or raw.get("torch_dtype")) == "bfloat16"
    )
    dtype = options.dtype or ("bfloat16" if half else "float32")
    config, params = huggingface.load(folder, dtype)
    if "score" in params:
        raise UsageError(f"{folder} is a reward model, which completes nothing, give another")
    lengths = [len(p) + s.max_new_tokens for p, s in zip(prompts, settings, strict=True)]
    sizes = sampler.Config(
        slots=min(len(prompts), sampler.Config.slots),
        length=_round(max(lengths)),
        queue=len(prompts),
        buckets=(_round(max(map(len, prompts))),),
        stops=len(tokenizer.eos_ids),
        dtype=dtype,
        # It would be gained back only after a thousand tokens, and doubles the weights' memory.
        unroll=False,
    )
    return Job(sampler.make(transformer.make(config), sizes), params, tokenizer, prompts, settings)


def _requests(
    options: Options, tokenizer: Tokenizer, context: int
) -> tuple[list[list[int]], list[Settings]]:
    """Encodes every prompt and gives it as many tokens as the context has left, for each sample."""
    prompts, settings, chat = [], [], _is_chat(options)
    for number, text in enumerate(_texts(options.prompt), 1):
        prompt = _encode(tokenizer, text, options.system, chat)
        room = context - len(prompt)
        if room < 1:
            raise UsageError(
                f"prompt {number} has {len(prompt)} tokens, which leaves no room in the model's "
                f"context of {context}, shorten it"
            )
        most = min(options.max_new_tokens, room)
        chosen = dataclasses.replace(
            _settings(options), max_new_tokens=most, stop_ids=tokenizer.eos_ids
        )
        prompts += [prompt] * options.samples
        settings += [chosen] * options.samples
    return prompts, settings


def _round(length: int) -> int:
    return -(-length // ROUND) * ROUND


def _texts(prompts: Sequence[str]) -> Iterator[str]:
    """Reads standard input where it is meant, and like a shell drops the line break at its end."""
    for number, given in enumerate(prompts, 1):
        try:
            text = sys.stdin.read().removesuffix("\n") if given == "-" else given
            # Bytes that are no text arrive as surrogates.
            text.encode()
        except UnicodeError as error:
            raise UsageError(f"prompt {number} is no text: not UTF-8") from error
        if not text.strip():
            raise UsageError(f"prompt {number} is empty")
        yield text


def _is_chat(options: Options) -> bool:
    """Tells whether prompts are turns of a chat: if the folder has a template for it."""
    config = options.model / "tokenizer_config.json"
    templates = read_templates(options.model, read_json(config) if config.exists() else {})
    if options.system is not None and (options.raw or not templates):
        why = "with --raw" if options.raw else f"in {options.model}, which has no chat template"
        raise UsageError(f"system: there is no chat {why}, leave --system out")
    return bool(templates) and not options.raw


def _encode(tokenizer: Tokenizer, text: str, system: str | None, chat: bool) -> list[int]:
    if not chat:
        return tokenizer.encode(text, add_special_tokens=True)
    before = [] if system is None else [{"role": "system", "content": system}]
    return tokenizer.apply_chat([*before, {"role": "user", "content": text}])


def _compile(job: Job, key) -> None:
    """Lets the sampler do nothing, for which it needs all of its programs."""
    c = job.sampler.config
    nothing = requests.pack([], [], [], c.queue, c.length, c.stops)
    state = job.sampler.submit(job.sampler.init(key), nothing)
    jax.block_until_ready(job.sampler.advance(job.params, state, np.int32(0), np.int32(0)))


def _stream(job: Job, key, stops: Sequence[str], write: Callable[[str], Any]) -> Completion:
    """Writes a completion as it grows, except for what may turn out to be the end."""
    stream, text, written, count = Stream(job.tokenizer), "", 0, 0
    sampler, params, _, (prompt,), (settings,) = job
    for completion in generation.stream(sampler, params, prompt, key, settings, EVERY):
        text += "".join(map(stream.push, completion.tokens[count:].tolist()))
        count = len(completion.tokens)
        if completion.finish:
            text += stream.end()
        end = _end(text, stops)
        if end is not None:
            completion = completion._replace(finish="stop")
        elif completion.finish:
            end = len(text)
        else:
            end = len(text) - _held(text, stops)
        if end > written:
            write(text[written:end])
            written = end
        if completion.finish:
            write("\n")
            return completion
    raise AssertionError("a stream ends with a finished completion")


def _all(job: Job, key, options: Options, write: Callable[[str], Any]) -> list[Completion]:
    """Draws completions together and writes each, in their order, when those before it are."""
    completions = []
    for i, completion in enumerate(_in_order(job, key)):
        number, sample = divmod(i, options.samples)
        heading = [f"prompt {number + 1} of {len(options.prompt)}"] * (len(options.prompt) > 1)
        heading += [f"sample {sample + 1} of {options.samples}"] * (options.samples > 1)
        text = job.tokenizer.decode(completion.tokens)
        end = _end(text, options.stop)
        blank = "\n" * (i > 0)
        write(f"{blank}=== {', '.join(heading)} ===\n{text[:end]}\n")
        completions.append(completion if end is None else completion._replace(finish="stop"))
    return completions


def _in_order(job: Job, key) -> Iterator[Completion]:
    # Not `generation.generate`, which returns when all is done: that may take minutes, without a
    # word and deaf to Ctrl-C.
    c, ids = job.sampler.config, range(len(job.prompts))
    packed = requests.pack(job.prompts, job.settings, ids, c.queue, c.length, c.stops)
    state = job.sampler.submit(job.sampler.init(key), packed)
    done: dict[int, Completion] = {}
    for i in ids:
        while i not in done:
            state = job.sampler.advance(job.params, state, np.int32(0), np.int32(c.chunk))
            state, found = generation.collect(job.sampler, state)
            done |= {completion.request: completion for completion in found}
        yield done[i]


def _end(text: str, stops: Sequence[str]) -> int | None:
    """Returns where the first stop begins, None if there is none."""
    return min((text.index(stop) for stop in stops if stop in text), default=None)


def _held(text: str, stops: Sequence[str]) -> int:
    """Returns how many of the last characters may be the beginning of a stop."""
    begun = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(begun, default=0)
