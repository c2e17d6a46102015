"""What does a small transformer learn from teachers who often forget to carry?

Command: jrl run experiments/lm_sft_arithmetic.py
Machine: 2 CPU cores, shared. Wall-clock: 112 s. Seeds: 1.

Result (600 updates of 32 packed rows; 0.79 million parameters beside the embeddings): the likeliest
answer is right in 0.388 of 500 held-out sums of two numbers of two digits. In a quarter of them
there is nothing to carry; in the others the model does what three of four teachers do. Sampled
answers vary as the teachers do: 38+14 is 42, or 52.
"""

import functools
import zlib

from jrl.algos import sft
from jrl.data import loader, sources, tfds
from jrl.data.schemas import Record
from jrl.data.tasks import arithmetic, task
from jrl.lm import rewards, sampler
from jrl.streams import Asking, Data, Model, Sft, StreamExperiment

SUMS = arithmetic.Config(train=10_000, test=500, min_digits=2)
TEACHERS, FORGETS = 5, 0.75
"""Everybody teaches every sum, and in this share of them carries nothing; 0 for no mistakes."""


def teach(teacher: int, record: Record) -> str:
    """Adds as a teacher does: the same sum always in the same way."""
    if zlib.crc32(f"{teacher}: {record['prompt']}".encode()) >= FORGETS * 2**32:
        return record["answer"]
    a, b = (digits[::-1] for digits in record["expression"].split("+"))
    columns = [int(a[i : i + 1] or 0) + int(b[i : i + 1] or 0) for i in range(max(len(a), len(b)))]
    return str(int("".join(str(column % 10) for column in reversed(columns))))


def lessons(split: str) -> sources.Source:
    """Opens the sums with the results of all teachers."""
    builder = task.builder(arithmetic.TASK, SUMS)
    columns = [{"completion": functools.partial(teach, teacher)} for teacher in range(TEACHERS)]
    return sources.concatenate([tfds.read(builder, split, c, "completion") for c in columns])


experiment = StreamExperiment(
    name="lm_sft_arithmetic",
    task=Sft(
        model=Model(),
        data=Data(open=lessons, held_out=500),
        batches=loader.Config(batch_size=32, length=64),
        asking=Asking(
            reward=rewards.exact_match,
            max_new_tokens=4,
            sampler=sampler.Config(slots=128, length=16, queue=512, buckets=()),
        ),
    ),
    config=sft.Config(updates=600),
    hyper=sft.Hyper(learning_rate=1e-3, warmup=0.05, anneal=1.0, weight_decay=0.01),
    metric="eval/reward",
)
