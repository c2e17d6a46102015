"""A tiny experiment of every task, on files of a few lines."""

import dataclasses
import functools
import json

from jrl.algos import dpo, grpo, reward_model, rlhf_ppo, sft
from jrl.data import loader
from jrl.lm import rewards, sampler
from jrl.lm.config import Config
from jrl.streams import Asking, Data, Dpo, Grpo, Model, RewardModel, RlhfPpo, Sft, StreamExperiment
from jrl.streams.answers import Config as Batches

SIZES = Config(
    vocab_size=259,
    num_layers=1,
    width=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_width=24,
    tied=False,
)
MODEL = Model(sizes=SIZES)
LENGTH = functools.partial(rewards.target_length, scale=0.25)
"""-|n - 3| / 4 for n tokens."""

ASKING = Asking(
    reward=LENGTH,
    max_new_tokens=4,
    temperature=1.0,
    sampler=sampler.Config(slots=4, length=16, queue=16, buckets=(), unroll=False),
    workers=1,
)
PAIRS = loader.Config(batch_size=4, length=16, pack=False, threads=0)
TINY = {"log_every": 1, "evaluate_every": 3, "checkpoint_every": 2, "tensorboard": False}


def record(number):
    """One record that fits every schema; the longer answer is preferred."""
    prompt = f"{number}+1="
    return {
        "prompt": prompt,
        "completion": str(number + 1),
        "chosen": "aaa"[: 2 + number % 2],
        "rejected": "b",
        "target": 3,
    }


def write(path, records):
    path.write_text("".join(json.dumps(x) + "\n" for x in records))
    return str(path)


def data(folder, *columns):
    """Writes 20 records to learn from and 6 that are held out, with these columns."""
    names = ("prompt", *columns, "target")
    records = [{name: record(n)[name] for name in names} for n in range(26)]
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    return Data(train=write(train, records[:20]), test=write(test, records[20:]), held_out=6)


def experiment(kind, folder, updates=6, **changes):
    """Makes the experiment of an algorithm by its name; `changes` are of the task."""
    if kind == "sft":
        task = Sft(MODEL, data(folder, "completion"), loader.Config(4, 16, threads=0), ASKING)
        config, hyper = sft.Config(updates), sft.Hyper(learning_rate=0.01)
    elif kind == "reward_model":
        task = RewardModel(MODEL, data(folder, "chosen", "rejected"), PAIRS)
        config, hyper = reward_model.Config(updates), reward_model.Hyper(learning_rate=0.01)
    elif kind == "dpo":
        task = Dpo(MODEL, data(folder, "chosen", "rejected"), PAIRS, ASKING)
        config, hyper = dpo.Config(updates), dpo.Hyper(learning_rate=0.01)
    elif kind == "grpo":
        task = Grpo(MODEL, data(folder), Batches(prompts=3, lengths=(16,)), ASKING)
        config = grpo.Config(updates, group_size=4, max_new_tokens=4)
        hyper = grpo.Hyper(learning_rate=0.01, beta=0.1)
    else:
        task = RlhfPpo(
            MODEL,
            data(folder),
            Batches(prompts=6, lengths=(16,)),
            ASKING,
            reward=LENGTH,
        )
        config = rlhf_ppo.Config(updates, epochs=2, minibatches=2, kl_control="adaptive")
        hyper = rlhf_ppo.Hyper(learning_rate=0.01)
    task = dataclasses.replace(task, **changes)
    return StreamExperiment(name=kind, task=task, config=config, hyper=hyper, **TINY)


KINDS = ("sft", "reward_model", "dpo", "grpo", "rlhf_ppo")
