"""The tasks of language models: what each algorithm needs of a model, data and rewards."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import tyro

from jrl import tree
from jrl.algos import dpo, grpo, reward_model, rlhf_ppo, sft
from jrl.data import loader
from jrl.data.loader import Loader
from jrl.data.schemas import Schema
from jrl.lm import transformer
from jrl.lm.policy import (
    Frozen,
    Policy,
    PreferenceBatch,
    RolloutBatch,
    TokenBatch,
    by_parts,
    judged,
)
from jrl.lm.requests import Settings
from jrl.lm.rewards import Reward
from jrl.streams import answers
from jrl.streams.answers import Answers
from jrl.streams.asking import Asking
from jrl.streams.contract import Start
from jrl.streams.examples import Examples, batch_of
from jrl.streams.models import (
    Model,
    Opened,
    adapted,
    classifier,
    open_model,
    outline,
    saver,
)
from jrl.streams.records import Data
from jrl.types import Array, Key, Params, check_sizes

__all__ = ["Dpo", "Grpo", "RewardModel", "RlhfPpo", "Sft"]

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class _Examples:
    """What tasks that learn from a data set have in common."""

    model: Model = Model()
    """Where training begins."""
    data: Data = Data()
    """Examples."""
    batches: loader.Config = loader.Config()
    """Rows of a batch; its seed is added to the experiment's."""
    asking: Asking = Asking()
    """Held-out prompts that are asked at every evaluation."""
    pairs: ClassVar[bool] = False
    """Whether an example is a pair of answers."""

    def validate(self, config: Any, hyper: Any) -> None:
        """Raises ValueError with one line that names the field and the fix; loads no weights."""
        self.model.validate()
        self.asking.validate()
        check_sizes("batches", self.batches)
        if self.batches.epochs is not None:
            raise ValueError("batches.epochs must be None: config.updates is the end of a run")
        if self.batches.batch_size % config.microbatches:
            raise ValueError(
                f"config.microbatches={config.microbatches} must divide "
                f"batches.batch_size={self.batches.batch_size}"
            )
        self.data.validate()
        opened, train = outline(self.model), self.data.source("train")
        if (train.schema == "preference") != self.pairs or train.schema == "prompt":
            wanted = "pairs: chosen and rejected" if self.pairs else "prompts with completions"
            raise ValueError(f"data.train: there must be {wanted}, not records of {train.schema!r}")
        if (test := self.data.source("test")).schema != train.schema:
            raise ValueError(
                f"data.test: records of {test.schema!r}, but those of data.train are of "
                f"{train.schema!r}: name a file of the same kind"
            )
        self.held_out(opened)
        if self.asking.reward is not None:
            self.asking.check(opened, self.data, "test", self.asking.reward)

    def loading(self, opened: Opened, seed: int) -> loader.Config:
        """Returns the sizes and the order of batches."""
        seed = self.batches.seed + seed
        return dataclasses.replace(self.batches, seed=seed, pad_id=opened.tokenizer.pad_id)

    def held_out(self, opened: Opened) -> list[TokenBatch | PreferenceBatch]:
        """Returns the held-out examples in batches, the last one filled up with padding."""
        sizes = self.loading(opened, 0)
        once = dataclasses.replace(sizes, epochs=1, shuffle=False, threads=0)
        records, encoder = self.data.held_out_records(), opened.encoder(self.schema("test"))
        try:
            return [batch_of(arrays) for arrays in Loader(records, once, encoder)]
        except ValueError as error:
            raise ValueError(f"data.test: {error}") from error

    def schema(self, split: str) -> Schema:
        """Returns what the records of a split are."""
        return self.data.source(split).schema

    def stream(self, opened: Opened, config: Any, seed: int, reference=None) -> Examples:
        """Opens the data and the exam."""
        source = self.data.source("train")
        batches = Loader(source, self.loading(opened, seed), opened.encoder(source.schema))
        asker = self.asking.asker(opened, self.asking.reward, config.compute_dtype)
        exam = self.asking.exam(asker, self.data, _key(seed, 3), reference)
        return Examples(batches, self.held_out(opened), exam)


class Sft(_Examples):
    """Supervised fine-tuning: completions are learned."""

    def start(self, config: sft.Config, hyper: Any, seed: int) -> Start:
        """Loads the model and opens the data."""
        opened, policy, params, base = _policy(self.model, seed)
        stream = self.stream(opened, config, seed)
        return Start(sft.make(policy, config), params, Frozen(base), stream, saver(opened))


@dataclasses.dataclass(frozen=True)
class _Pairs(_Examples):
    """What tasks that learn from preferences have in common."""

    batches: loader.Config = loader.Config(pack=False)
    pairs: ClassVar[bool] = True

    def validate(self, config: Any, hyper: Any) -> None:
        """Raises ValueError with one line that names the field and the fix; loads no weights."""
        if self.batches.pack:
            raise ValueError("batches.pack must be False: a row is one answer of a pair")
        super().validate(config, hyper)


class RewardModel(_Pairs):
    """A reward model: which answer of a pair was preferred is learned."""

    def start(self, config: reward_model.Config, hyper: Any, seed: int) -> Start:
        """Loads the model, gives it a head for scores, and opens the data."""
        opened, policy, params, base = _policy(self.model, seed)
        head = transformer.init_score_head(_key(seed, 2), opened.model.config)
        params, stream = {"trunk": params, "score": head}, self.stream(opened, config, seed)
        updater = reward_model.make(policy, config)
        return Start(updater, params, Frozen(base), stream, saver(opened))


@dataclasses.dataclass(frozen=True)
class Dpo(_Pairs):
    """Preferences learned without a reward model; the reference is the model as it begins."""

    reference_dtype: Dtype = "float32"
    """Of the frozen reference; with adapters it is their base, as it is."""

    def start(self, config: dpo.Config, hyper: Any, seed: int) -> Start:
        """Loads the model and opens the data."""
        opened, policy, params, base = _policy(self.model, seed)
        frozen = _frozen(opened, base, self.reference_dtype)
        stream = self.stream(opened, config, seed, (policy, frozen))
        return Start(dpo.make(policy, config), params, frozen, stream, saver(opened))


@dataclasses.dataclass(frozen=True)
class _Answers:
    """What tasks that learn from sampled answers have in common."""

    model: Model = Model()
    """Where training begins, and what it is held close to."""
    data: Data = Data()
    """Prompts, with whatever the rewards need in other columns."""
    batches: answers.Config = answers.Config()
    """Batches of answers."""
    asking: Asking = Asking()
    """How prompts are sampled and judged."""
    reference_dtype: Dtype = "float32"
    """Of the frozen reference; with adapters it is their base, as it is."""
    reward_model: Model = Model()
    """The folder of a reward model, which judges answers too; None for none."""

    def validate(self, config: Any, hyper: Any) -> None:
        """Raises ValueError with one line that names the field and the fix; loads no weights."""
        self.model.validate()
        if self.reward_model.folder is not None:
            self.reward_model.validate("reward_model")
        elif self.judge() is None:
            raise ValueError("reward_model.folder: missing, and there is no reward function either")
        self.batches.validate()
        self.asking.validate()
        if not hyper.temperature > 0:
            raise ValueError(f"hyper.temperature must be positive, got {hyper.temperature}")
        tokens = getattr(config, "max_new_tokens", self.asking.max_new_tokens)
        if tokens != self.asking.max_new_tokens:
            raise ValueError(
                f"config.max_new_tokens={tokens} and asking.max_new_tokens="
                f"{self.asking.max_new_tokens} must be the same"
            )
        if max(self.batches.lengths) < self.asking.sampler.length:
            raise ValueError(
                f"batches.lengths={self.batches.lengths} must hold sampler.length="
                f"{self.asking.sampler.length}: add one that does"
            )
        rows = self.batches.prompts * getattr(config, "group_size", 1)
        if rows % (parts := config.minibatches * config.microbatches):
            raise ValueError(
                f"config.minibatches * config.microbatches = {parts} must divide the {rows} "
                "answers of a batch"
            )
        self.data.validate()
        opened = outline(self.model)
        if self.reward_model.folder is not None:
            ours, theirs = opened.tokenizer, outline(self.reward_model).tokenizer
            texts = [str(record.get("prompt")) for record in self.data.held_out_records()]
            same = all(ours.encode(text) == theirs.encode(text) for text in texts)
            if not same or ours.eos_ids != theirs.eos_ids or ours.vocab_size != theirs.vocab_size:
                raise ValueError(
                    "reward_model.folder: its tokenizer is not the policy's: "
                    "name a reward model that was made of the same model"
                )
        self.asking.check(opened, self.data, "train", self.judge())
        self.asking.check(opened, self.data, "test", self.asking.reward)

    def judge(self) -> Reward | None:
        """Returns the function that rewards what is learned from."""
        return self.asking.reward

    def stream(self, opened: Opened, config: Any, hyper: Any, seed: int, reference) -> Answers:
        """Opens the data, and starts what samples and judges."""
        source, asking, dtype = self.data.source("train"), self.asking, config.compute_dtype
        asker = judge = asking.asker(opened, self.judge(), dtype)
        if asking.reward is not self.judge():
            judge = asking.asker(opened, asking.reward, dtype, asker.sampler)
        settings = Settings(
            asking.max_new_tokens,
            float(hyper.temperature),
            top_p=self.batches.top_p,
            stop_ids=opened.tokenizer.eos_ids,
        )
        records = Loader(source, loader.Config(batch_size=self.batches.prompts, seed=seed))
        exam = asking.exam(judge, self.data, _key(seed, 3), reference)
        size = getattr(config, "group_size", 1)
        return Answers(records, asker, self.batches, size, settings, _key(seed, 4), exam)


@dataclasses.dataclass(frozen=True)
class Grpo(_Answers):
    """Answers compared with others to their prompt.

    Judged by `asking.reward`, by a reward model, or by the sum of both. Dynamic sampling goes by
    the function alone.
    """

    reward_weight: float = 1.0
    """What the reward model's scores are multiplied by before they are added."""

    def start(self, config: grpo.Config, hyper: Any, seed: int) -> Start:
        """Loads the model, opens the data and starts the reward's processes."""
        opened, policy, params, base = _policy(self.model, seed)
        held = float(hyper.beta) > 0
        frozen = _frozen(opened, base, self.reference_dtype) if held else Frozen(base)
        stream = self.stream(opened, config, hyper, seed, (policy, frozen) if held else None)
        if self.reward_model.folder is not None:
            stream.score = self.scores(config, seed)
        return Start(grpo.make(policy, config), params, frozen, stream, saver(opened))

    def scores(self, config: grpo.Config, seed: int) -> Callable[[RolloutBatch], Array]:
        """Returns what the reward model adds to the rewards of a batch."""
        opened = open_model(self.reward_model, _key(seed, 0))
        params, parts = classifier(opened), config.minibatches * config.microbatches

        @jax.jit
        def score(params, text: TokenBatch):
            params = tree.cast(params, config.compute_dtype)
            return by_parts(lambda part: judged(opened.model, params, part), text, parts)

        return lambda batch: self.reward_weight * score(params, batch.text)


@dataclasses.dataclass(frozen=True)
class RlhfPpo(_Answers):
    """Answers judged by a reward model, or a function, or both, with a value model as critic.

    `asking.reward` judges at evaluations alone: what a reward model was made to stand for.
    """

    reward: tyro.conf.Suppress[Reward | None] = None
    """A function whose rewards are added to the reward model's."""

    def judge(self) -> Reward | None:
        """Returns the function whose rewards are added, None if there is none."""
        return self.reward

    def start(self, config: rlhf_ppo.Config, hyper: Any, seed: int) -> Start:
        """Loads policy, base, reward and value model, and opens the data."""
        opened, policy, params, base = _policy(self.model, seed)
        frozen, judge, trunk = _frozen(opened, base, self.reference_dtype), None, opened.params
        if self.reward_model.folder is not None:
            scorer = open_model(self.reward_model, _key(seed, 0))
            judge, scored = scorer.model, classifier(scorer)
            frozen = frozen.replace(reward=scored)
            if _alike(judge, opened.model):
                trunk = scored["trunk"]
        params = {
            "policy": params,
            "value": rlhf_ppo.init_value(policy, config, _key(seed, 2), trunk),
        }
        stream = self.stream(opened, config, hyper, seed, (policy, frozen))
        updater = rlhf_ppo.make(policy, config, judge)
        return Start(updater, params, frozen, stream, saver(opened))


def _key(seed: int, number: int) -> Key:
    return jax.random.fold_in(jax.random.key(seed), number)


def _policy(source: Model, seed: int) -> tuple[Opened, Policy, Params, Params]:
    opened = open_model(source, _key(seed, 0))
    return opened, *adapted(opened, _key(seed, 1))


def _frozen(opened: Opened, base: Params, dtype: Dtype) -> Frozen:
    return Frozen(base) if opened.source.lora_rank else Frozen((), tree.cast(opened.params, dtype))


def _alike(one: transformer.Transformer, other: transformer.Transformer) -> bool:
    """Says whether two models have the same trunk."""
    configs = [
        dataclasses.replace(model.config, tied=True, remat="none", attention="auto")
        for model in (one, other)
    ]
    return configs[0] == configs[1]
