"""Does GRPO teach a model that adds now and then to add reliably, from right and wrong alone?

Command: jrl run experiments/lm_grpo_arithmetic.py
"""

from jrl.algos import grpo
from jrl.data.tasks import arithmetic
from jrl.lm import rewards, sampler
from jrl.streams import Asking, Data, Grpo, Model, StreamExperiment
from jrl.streams.answers import Config as Batches

SUMS = arithmetic.Config(train=10_000, test=500)
START = Model(
    folder="runs/lm_sft_arithmetic/model", made_by="jrl run experiments/lm_sft_arithmetic.py"
)

experiment = StreamExperiment(
    name="lm_grpo_arithmetic",
    task=Grpo(
        model=START,
        data=Data(open=lambda split: arithmetic.load(SUMS, split), held_out=500),
        batches=Batches(prompts=256, lengths=(12,)),
        asking=Asking(
            reward=rewards.exact_match,
            max_new_tokens=4,
            sampler=sampler.Config(slots=512, length=12, queue=2048, buckets=()),
        ),
    ),
    config=grpo.Config(updates=200, group_size=8, max_new_tokens=4),
    hyper=grpo.Hyper(learning_rate=5e-4, warmup=0.05, anneal=1.0),
    evaluate_every=20,
    metric="eval/reward",
)
