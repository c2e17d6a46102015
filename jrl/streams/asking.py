"""Asking a policy: prompts are sampled from it, the answers scored and put into batches."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tyro

from jrl import tree
from jrl.data import sources
from jrl.data.schemas import Record
from jrl.lm import generation
from jrl.lm import sampler as samplers
from jrl.lm.policy import Frozen, Policy, RolloutBatch, TokenBatch
from jrl.lm.requests import Completion, Settings
from jrl.lm.rewards import Reward, check_columns
from jrl.lm.rewards.scorer import Scorer
from jrl.lm.sampler import Sampler
from jrl.losses import tokens
from jrl.streams.contract import Held
from jrl.streams.models import Opened
from jrl.streams.records import Data
from jrl.types import Key, Metrics, Params

__all__ = ["Answer", "Asker", "Asking", "Exam", "sample", "to_batch"]

ROWS = 64
"""Answers whose divergence is computed at a time."""


class Answer(NamedTuple):
    """One completion and what it was worth."""

    record: Record
    prompt: np.ndarray
    completion: Completion
    text: str
    reward: float
    known: bool
    """Whether the reward functions gave a number."""


Groups = list[list[Answer]]
"""The answers to each prompt."""


class Asker:
    """Samples answers and has them scored.

    Reward functions are given the record's prompt, the text of the answer (which is decoded for
    them alone: what is learned from are the ids that were sampled), and, if they ask for them, the
    record's other columns and `completion_ids`. Without a `scorer` every answer is worth 0. The
    model computes in `dtype`, which should be what it is trained in.
    """

    def __init__(
        self,
        opened: Opened,
        sampler: Sampler,
        scorer: Scorer | None = None,
        dtype: str = "float32",
    ):
        # What it asks are the parameters that it is given, not those that training began with.
        self.opened = opened._replace(params=())
        self.sampler, self.scorer, self.dtype = sampler, scorer, dtype
        self._failed: set[str] = set()
        self._notes: list[str] = []

    def __call__(
        self, params: Params, records: Sequence[Record], key: Key, size: int, settings: Settings
    ) -> tuple[Groups, Metrics]:
        """Returns `size` answers to each record's prompt, and what scoring them measured."""
        records = [record for record in records for _ in range(size)]
        prompts = [np.asarray(self.opened.prompt_ids(record), np.int32) for record in records]
        params = tree.cast(params, self.dtype)
        completions = generation.generate(self.sampler, params, prompts, key, settings)
        texts = [self.opened.tokenizer.decode(completion.tokens) for completion in completions]
        ids = [completion.tokens.tolist() for completion in completions]
        rewards, known, measured = self._score(records, texts, ids)
        columns = (records, prompts, completions, texts, rewards, known)
        answers = [
            Answer(record, prompt, completion, text, float(reward), bool(ok))
            for record, prompt, completion, text, reward, ok in zip(*columns, strict=True)
        ]
        return [answers[i : i + size] for i in range(0, len(answers), size)], measured

    def notes(self) -> list[str]:
        """Returns, once, the first failure of each reward function."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Ends the scorer's processes."""
        if self.scorer is not None:
            self.scorer.close()

    def _score(self, records: Sequence[Record], texts: Sequence[str], ids: list[list[int]]):
        if self.scorer is None:
            return np.zeros(len(texts)), np.ones(len(texts), bool), {}
        columns = {name: [record[name] for record in records] for name in records[0]}
        columns["completion_ids"] = ids
        scores = self.scorer(columns.pop("prompt"), texts, **columns)
        for failure in scores.failures:
            if failure.function not in self._failed:
                self._failed.add(failure.function)
                self._notes.append(
                    f"reward {failure.function!r} failed for the first time ({failure.kind}) and "
                    f"costs its sample, as others will:\n{failure.traceback}"
                )
        return scores.rewards, scores.valid, scores.metrics


class Exam:
    """Asks held-out prompts: reward, length and, where there is a reference, distance from it.

        kl = mean over answers of sum_t log(pi(y_t) / pi_ref(y_t)),    in nats

    which estimates KL(pi || pi_ref) where `settings` sample at temperature 1 from all tokens, and
    is left out where they do not. `lengths` are those that batches are padded to.
    """

    def __init__(
        self,
        asker: Asker,
        records: Sequence[Record],
        key: Key,
        settings: Settings,
        lengths: Sequence[int],
        reference: tuple[Policy, Frozen] | None = None,
    ):
        self.asker, self.records, self.key = asker, list(records), key
        self.settings, self.lengths = settings, lengths
        exact = settings.temperature == 1 and settings.top_p == 1 and settings.top_k == 0
        self._distance = None
        if reference is not None and exact and settings.min_p == 0:
            policy, frozen = reference
            self._distance = functools.partial(
                jax.jit(functools.partial(_distance, policy, asker.dtype)), frozen
            )

    def __call__(self, policy: Callable[[], Params]) -> Held:
        """Returns what the policy's answers are worth, and all of them as samples."""
        groups, measured = self.asker(policy(), self.records, self.key, 1, self.settings)
        answers = [group[0] for group in groups]
        sizes = [len(answer.completion.tokens) for answer in answers]
        measured["length"] = (float(sum(sizes)), float(len(sizes)))
        if self._distance is not None:
            parts = [groups[i : i + ROWS] for i in range(0, len(groups), ROWS)]
            found = [self._distance(to_batch(part, self.lengths)) for part in parts]
            measured["kl"] = (float(sum(found)), float(len(groups)))
        samples = [sample(answer) for answer in answers]
        return Held((), measured, samples, self.asker.notes())


def _distance(policy: Policy, dtype: str, frozen: Frozen, batch: RolloutBatch) -> jax.Array:
    ours = batch.sampler_log_probs
    theirs = policy.reference_log_probs(tree.cast(frozen, dtype), batch.text)
    return tokens.masked_sum(ours - theirs, batch.text.mask)


def sample(answer: Answer) -> Record:
    """Returns what of an answer is shown."""
    return {"prompt": answer.record["prompt"], "answer": answer.text, "reward": answer.reward}


def to_batch(groups: Sequence[Sequence[Answer]], lengths: Sequence[int]) -> RolloutBatch:
    """Puts answers into rows, prompt first, padded to the least of `lengths` that holds them all.

    Raises ValueError if none does.
    """
    answers = [answer for group in groups for answer in group]
    longest = max(len(x.prompt) + len(x.completion.tokens) for x in answers)
    fitting = [length for length in sorted(lengths) if length >= longest]
    if not fitting:
        raise ValueError(f"batches.lengths: none holds {longest} tokens, add one that does")
    shape = (len(answers), fitting[0])
    tokens, segment_ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    mask, log_probs = np.zeros(shape, bool), np.zeros(shape, np.float32)
    for row, answer in enumerate(answers):
        begin, end = len(answer.prompt), len(answer.prompt) + len(answer.completion.tokens)
        tokens[row, :begin], tokens[row, begin:end] = answer.prompt, answer.completion.tokens
        segment_ids[row, :end], mask[row, begin:end] = 1, True
        log_probs[row, begin:end] = answer.completion.tempered_log_probs
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return RolloutBatch(
        text=TokenBatch(tokens, mask, segment_ids, positions),
        sampler_log_probs=log_probs,
        rewards=np.array([x.reward if x.known else 0.0 for x in answers], np.float32),
        known=np.array([x.known for x in answers]),
        group_ids=np.repeat(np.arange(len(groups), dtype=np.int32), [len(g) for g in groups]),
        truncated=np.array([x.completion.finish != "stop" for x in answers]),
    )


@dataclasses.dataclass(frozen=True)
class Asking:
    """How prompts are sampled, and who judges the answers."""

    reward: tyro.conf.Suppress[Reward | None] = None
    """What answers to held-out prompts are worth; None to ask none."""
    max_new_tokens: int = 128
    """Longest answer."""
    temperature: float = 0.0
    """Of answers to held-out prompts; 0 for the likeliest tokens, 1 to measure a divergence."""
    sampler: samplers.Config = samplers.Config()
    """Sizes of the sampler."""
    workers: int | None = None
    """Processes that judge; None for one per core."""
    timeout: float = 10.0
    """Seconds that one judgement may take."""
    max_failed: float = 0.25
    """Share of failed judgements beyond which the run is stopped."""

    def validate(self) -> None:
        """Raises ValueError with one line that names the field and the fix."""
        self.sampler.validate()
        if self.max_new_tokens < 1:
            raise ValueError(f"asking.max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"asking.temperature must be at least 0, got {self.temperature}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"asking.workers must be at least 1, got {self.workers}")
        if not (self.timeout > 0 and 0 <= self.max_failed <= 1):
            raise ValueError(
                "asking.timeout must be positive and asking.max_failed from 0 to 1, "
                f"got {self.timeout} and {self.max_failed}"
            )

    def check(self, opened: Opened, data: Data, split: str, reward: Reward | None) -> None:
        """Raises ValueError for a record that cannot be asked, or misses what a reward needs."""
        source, room = data.source(split), self.sampler.length - self.max_new_tokens
        count = len(source) if split == "train" else min(len(source), data.held_out)
        for index in range(count):
            record = source[index]
            where = f"data.{split}: {sources.place(source, index)}"
            if "prompt" not in record:
                raise ValueError(f"{where}: there is no prompt to ask, only {', '.join(record)}")
            if not 0 < (size := len(opened.prompt_ids(record))) <= room:
                raise ValueError(
                    f"{where}: its prompt has {size} tokens, but sampler.length="
                    f"{self.sampler.length} leaves 1 to {room} beside "
                    f"max_new_tokens={self.max_new_tokens}"
                )
            if reward is not None:
                try:
                    check_columns(reward, [*record, "completion_ids"])
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error

    def asker(
        self, opened: Opened, reward: Reward | None, dtype: str, sampler: Sampler | None = None
    ) -> Asker:
        """Makes what samples, in the dtype that the model is trained in, and judges."""
        sampler = sampler or samplers.make(opened.model, self.sampler)
        limits = (self.workers, self.timeout, self.max_failed)
        return Asker(opened, sampler, Scorer(reward, *limits) if reward else None, dtype)

    def exam(self, asker: Asker, data: Data, key: Key, reference=None) -> Exam | None:
        """Makes the exam of held-out prompts, None if there is nobody to judge."""
        if asker.scorer is None:
            return None
        records = data.held_out_records()
        settings = Settings(
            self.max_new_tokens, self.temperature, stop_ids=asker.opened.tokenizer.eos_ids
        )
        return Exam(asker, records, key, settings, (self.sampler.length,), reference)
