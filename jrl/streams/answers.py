"""Batches of answers that the policy samples to prompts, and that reward functions judge."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jrl import metrics
from jrl.data.loader import Loader
from jrl.lm import generation
from jrl.lm.policy import RolloutBatch, TokenBatch
from jrl.lm.requests import Completion, Settings
from jrl.lm.rewards.scorer import Scorer
from jrl.lm.sampler import Sampler
from jrl.lm.tokenizer import Tokenizer
from jrl.streams.contract import Drawn
from jrl.types import Params, check_sizes

__all__ = ["Answers", "Config", "to_batch"]

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """How many answers, and how they are drawn."""

    prompts: int = 32
    """Prompts of a batch."""
    group_size: int = 8
    """Answers to each prompt."""
    max_new_tokens: int = 256
    """Longest answer."""
    temperature: float = 1.0
    """Of sampling; evaluations take the likeliest token instead unless `evaluate_sampled`."""
    top_p: float = 1.0
    """Least total probability of what is sampled from; less than 1 biases the gradient."""
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    """Lengths that batches are padded to: each compiles programs of its own."""
    dynamic_rounds: int = 1
    """How often prompts are drawn until enough have answers of different reward (DAPO)."""
    evaluate_sampled: bool = False
    """Evaluate at `temperature`."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        if not self.temperature > 0:
            raise ValueError(f"config.temperature must be positive, got {self.temperature}")


class Answer(NamedTuple):
    """One completion and what it was worth."""

    record: Record
    prompt: np.ndarray
    completion: Completion
    text: str
    reward: float
    known: bool
    """Whether the reward functions gave a number."""


class Answers:
    """A `Stream` of answers: prompts of a loader of records, sampled and scored.

    `encode(record)` returns the ids of a record's prompt. Reward functions are given the record's
    prompt, the text of the answer (which is decoded for them alone: what is learned from are the
    ids that were sampled), and the record's other columns.
    """

    def __init__(
        self,
        loader: Loader,
        sampler: Sampler,
        scorer: Scorer,
        tokenizer: Tokenizer,
        encode: Callable[[Record], Sequence[int]],
        config: Config,
        seed: int = 0,
        held_out: Sequence[Record] = (),
    ):
        config.validate()
        self.loader, self.sampler, self.scorer = loader, sampler, scorer
        self.tokenizer, self.encode, self.config = tokenizer, encode, config
        self.held_out, self.close = list(held_out), scorer.close
        self.key = jax.random.key(seed)

    def draw(self, policy: Callable[[], Params], update: int) -> Drawn:
        """Samples and scores the answers of one batch.

        With `dynamic_rounds` above 1, prompts whose answers are all worth the same are replaced
        by the next ones of the loader, as often as that; what then is missing is filled up with
        them after all.
        """
        c, params = self.config, policy()
        key = jax.random.fold_in(self.key, update)
        groups, spare, measured = [], [], []
        for number in range(c.dynamic_rounds):
            answered, sums = self._answer(
                params, next(self.loader), jax.random.fold_in(key, number), c.group_size
            )
            measured.append(sums)
            for group in answered:
                rewards = {answer.reward for answer in group if answer.known}
                wanted = c.dynamic_rounds == 1 or len(rewards) > 1
                (groups if wanted else spare).append(group)
            if len(groups) >= c.prompts:
                break
        groups = (groups + spare)[: c.prompts]
        sums = {**metrics.join(measured), "rounds": (len(measured), 1.0)}
        return Drawn(to_batch(groups, c.lengths), sums, [_sample(groups[0][0])])

    def evaluate(self, policy: Callable[[], Params]) -> Drawn:
        """Answers and scores the held-out prompts once each."""
        if not self.held_out:
            return Drawn(None)
        temperature = self.config.temperature if self.config.evaluate_sampled else 0.0
        groups, measured = self._answer(policy(), self.held_out, self.key, 1, temperature)
        return Drawn(None, measured, [_sample(group[0]) for group in groups])

    def state(self) -> dict[str, Any]:
        """Returns the loader's place."""
        return self.loader.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        self.loader.set_state(state)

    def _answer(self, params: Params, records, key, group_size: int, temperature=None):
        """Returns the groups of answers to records, and what scoring them measured."""
        c = self.config
        settings = Settings(
            max_new_tokens=c.max_new_tokens,
            temperature=c.temperature if temperature is None else temperature,
            top_p=c.top_p if temperature is None else 1.0,
            stop_ids=self.tokenizer.eos_ids,
        )
        records = [record for record in records for _ in range(group_size)]
        prompts = [np.asarray(self.encode(record), np.int32) for record in records]
        completions = generation.generate(self.sampler, params, prompts, key, settings)
        texts = [self.tokenizer.decode(completion.tokens) for completion in completions]
        columns = {name: [record[name] for record in records] for name in records[0]}
        asked = columns.pop("prompt")
        scores = self.scorer(asked, texts, **columns)
        answers = [
            Answer(record, prompt, completion, text, float(reward), bool(known))
            for record, prompt, completion, text, reward, known in zip(
                records, prompts, completions, texts, scores.rewards, scores.valid, strict=True
            )
        ]
        groups = [answers[i : i + group_size] for i in range(0, len(answers), group_size)]
        return groups, scores.metrics


def to_batch(groups: Sequence[Sequence[Answer]], lengths: Sequence[int]) -> RolloutBatch:
    """Puts answers into rows, prompt first, padded to the least of `lengths` that holds them all.

    Raises ValueError if none does.
    """
    answers = [answer for group in groups for answer in group]
    longest = max(len(x.prompt) + len(x.completion.tokens) for x in answers)
    fitting = [length for length in sorted(lengths) if length >= longest]
    if not fitting:
        raise ValueError(f"config.lengths: none holds {longest} tokens, add one that does")
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


def _sample(answer: Answer) -> Record:
    return {"prompt": answer.record["prompt"], "answer": answer.text, "reward": answer.reward}
