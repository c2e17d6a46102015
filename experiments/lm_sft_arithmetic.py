"""Does a small transformer learn to add from examples?

Command: jrl run experiments/lm_sft_arithmetic.py
"""

from jrl.algos import sft
from jrl.data import loader
from jrl.data.tasks import arithmetic
from jrl.lm import rewards, sampler
from jrl.streams import Asking, Data, Model, Sft, StreamExperiment

SUMS = arithmetic.Config(train=10_000, test=500)

experiment = StreamExperiment(
    name="lm_sft_arithmetic",
    task=Sft(
        model=Model(),
        data=Data(open=lambda split: arithmetic.load(SUMS, split), held_out=500),
        batches=loader.Config(batch_size=32, length=64),
        asking=Asking(
            reward=rewards.exact_match,
            max_new_tokens=8,
            sampler=sampler.Config(slots=128, length=32, queue=512, buckets=(16,)),
        ),
    ),
    config=sft.Config(updates=120),
    hyper=sft.Hyper(learning_rate=1e-3, warmup=0.05, anneal=1.0, weight_decay=0.01),
    metric="eval/reward",
)
