"""Does GRPO teach a model that adds now and then to add reliably, from right and wrong alone?

Command: jrl run experiments/lm_grpo_arithmetic.py
"""

from jrl.algos import grpo
from jrl.data.tasks import arithmetic
from jrl.lm import rewards, sampler
from jrl.streams import Asking, Data, Grpo, Model, StreamExperiment
from jrl.streams.answers import Config as Batches

SUMS = arithmetic.Config(train=10_000, test=500, min_digits=2)
START = Model(
    folder="runs/lm_sft_arithmetic/model", made_by="jrl run experiments/lm_sft_arithmetic.py"
)

experiment = StreamExperiment(
    name="lm_grpo_arithmetic",
    task=Grpo(
        model=START,
        data=Data(open=lambda split: arithmetic.load(SUMS, split), held_out=500),
        batches=Batches(prompts=128, lengths=(12,)),
        asking=Asking(
            reward=rewards.exact_match,
            max_new_tokens=4,
            sampler=sampler.Config(slots=256, length=12, queue=1024, buckets=()),
        ),
    ),
    config=grpo.Config(updates=100, group_size=8, max_new_tokens=4),
    hyper=grpo.Hyper(learning_rate=3e-4, warmup=0.05, anneal=1.0),
    evaluate_every=25,
    metric="eval/reward",
)
