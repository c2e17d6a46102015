"""How much reward does DPO buy, and for how much divergence from where it began?

Command: jrl run experiments/lm_dpo.py (after lm_sft_preferences)
Machine: 2 CPU cores, shared. Wall-clock: 89 s. Seeds: 1.

Result (600 updates of 64 pairs, beta 0.5): sampled answers to 512 held-out prompts are worth 3.22,
before training 2.04, at 1.13 nats from the reference. Other values of beta, PPO with the same data,
and what is possible at all: lm_frontier.
"""

from jrl.algos import dpo
from jrl.data import loader
from jrl.data.tasks import preferences
from jrl.lm import sampler
from jrl.streams import Asking, Data, Dpo, Model, StreamExperiment

PAIRS = preferences.Config(train=50_000, test=512)


def reward(prompt: str, completion: str) -> float:
    """What the pairs were compared by."""
    return preferences.reward(prompt, completion, PAIRS)


experiment = StreamExperiment(
    name="lm_dpo",
    task=Dpo(
        model=Model(
            folder="runs/lm_sft_preferences/model",
            made_by="jrl run experiments/lm_sft_preferences.py",
        ),
        data=Data(open=lambda split: preferences.load(PAIRS, split), held_out=512),
        batches=loader.Config(batch_size=64, length=16, pack=False),
        asking=Asking(
            reward=reward,
            max_new_tokens=12,
            temperature=1.0,
            sampler=sampler.Config(slots=128, length=24, queue=512, buckets=(8,)),
        ),
    ),
    config=dpo.Config(updates=600),
    hyper=dpo.Hyper(learning_rate=1e-4, warmup=0.05, anneal=1.0, beta=0.5),
    evaluate_every=100,
    metric="eval/reward",
)
