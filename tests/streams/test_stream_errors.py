"""Mistakes: one clear line before any work, and what cannot be learned from does no harm."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import tiny

from jrl.algos import grpo
from jrl.data import loader
from jrl.lm import byte_tokenizer, huggingface, rewards, sampler, transformer
from jrl.lm.requests import Completion, Settings
from jrl.run_directory import UsageError
from jrl.streams import Answers, Asker, Data
from jrl.streams.answers import Config
from jrl.streams.asking import Answer


def constant(prompt, completion):
    return 1.0


def broken(prompt, completion):
    raise RuntimeError("no reward")


def folder(path, **sizes):
    """Writes a random model with the tokenizer of bytes."""
    config = dataclasses.replace(tiny.SIZES, **sizes)
    byte_tokenizer.save(path / "tokenizer")
    params = transformer.make(config).init(jax.random.key(0))
    huggingface.save(path / "model", config, params, tokenizer_from=path / "tokenizer")
    return str(path / "model")


def refused(experiment, directory, words, error=ValueError):
    with pytest.raises(error, match=re.escape(words)):
        experiment.run(directory, quiet=True)
    assert "\n" not in words
    assert not (directory / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("grpo", {"model": tiny.Model(folder="nowhere")}, "model.folder: nowhere has no config"),
        (
            "grpo",
            {"model": tiny.Model(folder="nowhere", made_by="jrl run it.py")},
            "run `jrl run it.py` first",
        ),
        ("sft", {"model": tiny.Model(lora_rank=-1)}, "model.lora_rank must be at least 0"),
        ("sft", {"data": Data()}, "data.train: missing, name a file of JSON lines"),
        ("sft", {"data": Data(train="nowhere.jsonl")}, "data.train: nowhere.jsonl is no file"),
        ("dpo", {"batches": dataclasses.replace(tiny.PAIRS, pack=True)}, "batches.pack must be"),
        ("dpo", {"batches": dataclasses.replace(tiny.PAIRS, epochs=1)}, "batches.epochs must be"),
        ("grpo", {"asking": dataclasses.replace(tiny.ASKING, reward=None)}, "asking.reward: miss"),
        (
            "grpo",
            {"asking": dataclasses.replace(tiny.ASKING, max_new_tokens=5)},
            "config.max_new_tokens=4 and asking.max_new_tokens=5 must be the same",
        ),
        ("rlhf_ppo", {"reward": None}, "reward_model.folder: missing"),
    ],
)
def test_settings_that_do_not_fit(kind, changes, words, tmp_path):
    experiment = tiny.experiment(kind, tmp_path, **changes)
    refused(experiment, tmp_path / "run", words)
    assert not (tmp_path / "run").exists()


def test_empty_data(tmp_path):
    experiment = tiny.experiment("sft", tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    refused(experiment, tmp_path / "run", "train.jsonl")
    assert not (tmp_path / "run").exists()


def test_a_bad_line_is_named(tmp_path):
    experiment = tiny.experiment("sft", tmp_path)
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"prompt": "1+1="}\n')
    # Lines are read as they are needed: this one in the first epoch.
    with pytest.raises(ValueError, match=r"train\.jsonl.*21.*completion"):
        experiment.run(tmp_path / "run", quiet=True)


def test_prompts_that_do_not_fit_the_cache(tmp_path):
    experiment = tiny.experiment("grpo", tmp_path)
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"prompt": "12345678901+1="}\n')
    words = "train.jsonl:21: its prompt has 15 tokens, but sampler.length=16 leaves 1 to 12"
    refused(experiment, tmp_path / "run", words, UsageError)


def test_columns_that_a_reward_needs(tmp_path):
    asking = dataclasses.replace(tiny.ASKING, reward=rewards.exact_match)
    experiment = tiny.experiment("grpo", tmp_path, asking=asking)
    words = "exact_match: needs the column 'answer'"
    refused(experiment, tmp_path / "run", words, UsageError)


def test_a_vocabulary_that_does_not_fit_the_model(tmp_path):
    model = tiny.Model(folder=folder(tmp_path, vocab_size=200))
    experiment = tiny.experiment("sft", tmp_path, model=model)
    refused(experiment, tmp_path / "run", "the model has 200 ids and its tokenizer 259")
    assert not (tmp_path / "run").exists()


def test_a_language_model_is_no_reward_model(tmp_path):
    judge = tiny.Model(folder=folder(tmp_path))
    experiment = tiny.experiment("rlhf_ppo", tmp_path, reward_model=judge)
    refused(experiment, tmp_path / "run", "has no head for scores", UsageError)


def test_other_options_than_the_run_was_started_with(tmp_path):
    experiment = tiny.experiment("sft", tmp_path, updates=2)
    experiment.run(tmp_path / "run", quiet=True)
    other = dataclasses.replace(experiment, hyper=experiment.hyper.replace(learning_rate=0.5))
    with pytest.raises(UsageError, match=r"hyper\.learning_rate is 0\.01 .* and now 0\.5"):
        other.run(tmp_path / "run", resume=True, quiet=True)


def test_equal_rewards_are_counted_and_teach_nothing(tmp_path):
    asking = dataclasses.replace(tiny.ASKING, reward=constant)
    experiment = tiny.experiment("grpo", tmp_path, updates=2, asking=asking)
    experiment = dataclasses.replace(experiment, hyper=grpo.Hyper(learning_rate=0.1))
    experiment.run(tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["means"] for line in lines]
    trained = [means for means in found if "equal_groups" in means]
    assert [means["equal_groups"] for means in trained] == [1.0, 1.0]
    assert all(means["grad_norm"] == 0 and means["loss"] == 0 for means in trained)


def test_rewards_that_fail_stop_the_run_past_a_threshold(tmp_path):
    asking = dataclasses.replace(tiny.ASKING, reward=broken, max_failed=0.0)
    experiment = tiny.experiment("grpo", tmp_path, asking=asking)
    with pytest.raises(RuntimeError, match="broken"):
        experiment.run(tmp_path / "run", quiet=True)


def test_dynamic_sampling_replaces_groups_of_equal_reward(tmp_path):
    """A scripted asker: of five prompts drawn, those of different rewards fill the batch."""
    asked = []

    class Scripted(Asker):
        def __init__(self):
            pass

        def __call__(self, params, records, key, size, settings):
            asked.extend(record["prompt"] for record in records)
            prompt, one = np.ones(2, np.int32), np.zeros(1, np.float32)
            completion = Completion(0, np.ones(1, np.int32), one, one, one, one, "stop")
            groups = [
                [Answer(record, prompt, completion, "", x, True) for x in record["rewards"]]
                for record in records
            ]
            return groups, {"reward": (1.0, 2.0)}

    worth = {"a": (0.0, 0.0), "b": (0.0, 1.0), "c": (1.0, 1.0), "d": (1.0, 0.0), "e": (0.0, 1.0)}
    records = [{"prompt": prompt, "rewards": worth[prompt]} for prompt in "abcde"]
    loading = loader.Loader(records, loader.Config(batch_size=2, shuffle=False, threads=0))
    config = Config(prompts=2, lengths=(4,), dynamic_rounds=3)
    stream = Answers(loading, Scripted(), config, 2, Settings(), jax.random.key(0))
    drawn = stream.draw(lambda: None, 0)
    assert asked == ["a", "b", "c", "d"]
    assert drawn.batch.rewards.tolist() == [0, 1, 1, 0]
    assert drawn.metrics["rounds"] == (2.0, 1.0) and drawn.metrics["reward"] == (2.0, 4.0)


def test_sizes_of_the_sampler_are_checked(tmp_path):
    asking = dataclasses.replace(tiny.ASKING, sampler=sampler.Config(slots=4, queue=2))
    experiment = tiny.experiment("grpo", tmp_path, asking=asking)
    refused(experiment, tmp_path / "run", "config.queue=2 must be at least slots=4")
