"""Batches of answers that the policy samples to prompts, and that reward functions judge."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jrl import metrics
from jrl.data.loader import Loader
from jrl.lm.policy import RolloutBatch
from jrl.lm.requests import Settings
from jrl.streams.asking import Asker, Exam, sample, to_batch
from jrl.streams.contract import Drawn, Held
from jrl.types import Array, Key, Params, check_sizes

__all__ = ["Answers", "Config"]


@dataclasses.dataclass(frozen=True)
class Config:
    """How many answers make a batch, and what shape it has."""

    prompts: int = 32
    """Prompts of a batch."""
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    """Lengths that batches are padded to: each compiles programs of its own."""
    dynamic_rounds: int = 1
    """How often prompts are drawn until enough have answers of different reward (DAPO)."""
    top_p: float = 1.0
    """Least total probability of what is sampled from; less than 1 biases the gradient."""

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("batches", self)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"batches.top_p must be above 0 and at most 1, got {self.top_p}")


class Answers:
    """A `Stream` of answers: prompts of a loader of records, sampled and scored.

    `size` is the number of answers to each prompt, `settings` say how they are sampled. `score`, if
    given, is what a reward model adds to the rewards of a batch.
    """

    def __init__(
        self,
        loader: Loader,
        asker: Asker,
        config: Config,
        size: int,
        settings: Settings,
        key: Key,
        exam: Exam | None = None,
        score: Callable[[RolloutBatch], Array] | None = None,
    ):
        self.loader, self.asker, self.config, self.exam = loader, asker, config, exam
        self.size, self.settings, self.key, self.score = size, settings, key, score

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
            records: Any = next(self.loader)
            answered, sums = self.asker(
                params, records, jax.random.fold_in(key, number), self.size, self.settings
            )
            measured.append(sums)
            for group in answered:
                rewards = {answer.reward for answer in group if answer.known}
                wanted = c.dynamic_rounds == 1 or len(rewards) > 1
                (groups if wanted else spare).append(group)
            if len(groups) >= c.prompts:
                break
        groups = (groups + spare)[: c.prompts]
        sums = {**metrics.join(measured), "rounds": (float(len(measured)), 1.0)}
        batch = to_batch(groups, c.lengths)
        if self.score is not None:
            batch = batch.replace(rewards=batch.rewards + self.score(batch))
        return Drawn(batch, sums, [sample(groups[0][0])], self.asker.notes())

    def evaluate(self, policy: Callable[[], Params]) -> Held:
        """Returns what the exam found."""
        return self.exam(policy) if self.exam else Held()

    def state(self) -> dict[str, Any]:
        """Returns the loader's place."""
        return self.loader.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        self.loader.set_state(state)

    def close(self) -> None:
        """Ends the scorer's processes."""
        self.asker.close()
        if self.exam:
            self.exam.asker.close()
