"""Does GRPO undo a habit of mistakes that imitation taught, from right and wrong alone?

Command: jrl run experiments/lm_grpo_arithmetic.py (after lm_sft_arithmetic)
Machine: 2 CPU cores, shared. Wall-clock: 152 s beside other work. Seeds: 3.

Result (100 updates of 128 sums with 8 answers each, from one SFT model): exact match on 500
held-out sums, likeliest answers: 0.388 before, 0.930 after 25 updates and 0.998 after 100 (seeds 1
and 2: 0.994 and 1.000). No right answer is shown to the model: it is told which of its own are.
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
