"""Mistakes: one clear line before any work, and what cannot be learned from does no harm."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import tiny

from jrl.algos import grpo
from jrl.data import loader
from jrl.lm import byte_tokenizer, huggingface, rewards, sampler, transformer
from jrl.lm.requests import Completion, Settings
from jrl.lm.rewards.scorer import RewardsFailedError
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
        (
            "grpo",
            {"asking": dataclasses.replace(tiny.ASKING, reward=None)},
            "reward_model.folder: missing",
        ),
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
    refused(experiment, tmp_path / "run", words)
    assert not (tmp_path / "run").exists()


def test_columns_that_a_reward_needs(tmp_path):
    asking = dataclasses.replace(tiny.ASKING, reward=rewards.exact_match)
    experiment = tiny.experiment("grpo", tmp_path, asking=asking)
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"prompt": "1+1=", "target": 3}\n')
    refused(experiment, tmp_path / "run", "exact_match: needs the column 'answer'")
    asking = dataclasses.replace(tiny.ASKING, reward=tiny.LENGTH)
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"prompt": "1+1="}\n')
    experiment = dataclasses.replace(
        experiment, task=dataclasses.replace(experiment.task, asking=asking)
    )
    words = "train.jsonl:22: target_length: needs the column 'target'"
    refused(experiment, tmp_path / "run", words)


@pytest.mark.parametrize(
    ("kind", "columns", "words"),
    [
        ("sft", ("chosen", "rejected"), "data.train: there must be prompts with completions"),
        ("dpo", ("completion",), "data.train: there must be pairs: chosen and rejected"),
        ("sft", (), "data.train: there must be prompts with completions"),
    ],
)
def test_records_of_another_kind(kind, columns, words, tmp_path):
    data = tiny.data(tmp_path, *columns)
    (tmp_path / "other").mkdir()
    experiment = tiny.experiment(kind, tmp_path / "other", data=data)
    refused(experiment, tmp_path / "run", words)


def test_held_out_records_of_another_kind(tmp_path):
    experiment = tiny.experiment("sft", tmp_path)
    tiny.write(tmp_path / "test.jsonl", [{"text": "1+1=2"}])
    words = "data.test: records of 'text', but those of data.train are of 'completion'"
    refused(experiment, tmp_path / "run", words)


def test_batches_that_cannot_be_cut(tmp_path):
    experiment = tiny.experiment("grpo", tmp_path)
    config = dataclasses.replace(experiment.config, minibatches=5)
    words = "config.minibatches * config.microbatches = 5 must divide the 12 answers"
    refused(dataclasses.replace(experiment, config=config), tmp_path / "run", words)
    experiment = tiny.experiment("dpo", tmp_path)
    config = dataclasses.replace(experiment.config, microbatches=3)
    words = "config.microbatches=3 must divide batches.batch_size=4"
    refused(dataclasses.replace(experiment, config=config), tmp_path / "run", words)


def test_an_example_that_is_too_long_costs_one_line_and_no_update(tmp_path):
    """It is found when it is drawn; what was learned before is saved."""
    experiment = tiny.experiment("sft", tmp_path, updates=40)
    records = [{"prompt": f"{n}+1=", "completion": str(n + 1), "target": 3} for n in range(40)]
    records[30]["completion"] = "x" * 40
    tiny.write(tmp_path / "train.jsonl", records)
    loading = loader.Config(1, 16, pack=False, threads=0, shuffle=False)
    experiment = dataclasses.replace(
        experiment,
        task=dataclasses.replace(experiment.task, batches=loading),
        checkpoint_every=100,
        evaluate_every=100,
    )
    with pytest.raises(UsageError, match=r"train\.jsonl:31: .* tokens do not fit into length=16"):
        experiment.run(tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")] == ["30"]


def test_pairs_that_are_dropped_weigh_nothing(tmp_path):
    """A batch that is half empty has the gradient of its other half."""
    for name, long in (("short", 0), ("long", 10)):
        (tmp_path / name).mkdir()
        experiment = tiny.experiment("dpo", tmp_path / name, updates=1)
        records = [tiny.record(n) for n in range(10)]
        extra = [{**tiny.record(9), "chosen": "x" * 40} for _ in range(long)]
        mixed = [x for pair in zip(records, extra, strict=False) for x in pair] or records
        tiny.write(tmp_path / name / "train.jsonl", mixed)
        loading = dataclasses.replace(
            tiny.PAIRS, too_long="drop", shuffle=False, batch_size=4 if long else 2
        )
        task = dataclasses.replace(experiment.task, batches=loading, asking=tiny.Asking())
        dataclasses.replace(experiment, task=task).run(tmp_path / name / "run", quiet=True)
    rows = [
        json.loads((tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()[1])
        for name in ("short", "long")
    ]
    for name in ("loss", "grad_norm"):
        one, other = (row["means"][name] for row in rows)
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_reward_model_of_another_vocabulary(tmp_path):
    from jrl.lm import tokenizer

    policy = folder(tmp_path)
    judge = tmp_path / "judge"
    shutil.copytree(policy, judge)
    file = json.loads((judge / "tokenizer.json").read_text())
    vocabulary = file["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    (judge / "tokenizer.json").write_text(json.dumps(file))
    swapped = tokenizer.load(judge).encode("12")
    assert swapped == tokenizer.load(policy).encode("21")
    experiment = tiny.experiment(
        "rlhf_ppo",
        tmp_path,
        model=tiny.Model(folder=policy),
        reward_model=tiny.Model(folder=str(judge)),
    )
    refused(experiment, tmp_path / "run", "reward_model.folder: its tokenizer is not the policy's")


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
    with pytest.raises(RewardsFailedError, match="broken"):
        experiment.run(tmp_path / "run", quiet=True)


def test_dynamic_sampling_replaces_groups_of_equal_reward(tmp_path):
    """A scripted asker: of five prompts drawn, those of different rewards fill the batch."""
    asked = []

    class Scripted(Asker):
        def __init__(self):
            pass

        def notes(self):
            return []

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
