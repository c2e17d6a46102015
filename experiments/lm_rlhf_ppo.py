"""How much reward does PPO with a reward model buy, and for how much divergence from the base?

Command: jrl run experiments/lm_rlhf_ppo.py (after lm_sft_preferences and lm_reward_model)
Machine: 2 CPU cores, shared. Wall-clock: 98 s. Seeds: 1.

Result (120 batches of 128 answers, beta 0.5): sampled answers to 512 held-out prompts are worth
3.13, before training 2.04, at 0.89 nats from the base. Other values of beta, DPO with the same
data, and what is possible at all: lm_frontier.
"""

from jrl.algos import rlhf_ppo
from jrl.data.tasks import preferences
from jrl.lm import sampler
from jrl.streams import Asking, Data, Model, RlhfPpo, StreamExperiment
from jrl.streams.answers import Config as Batches

PAIRS = preferences.Config(train=50_000, test=512)


def reward(prompt: str, completion: str) -> float:
    """What the pairs were compared by, which the reward model stands for."""
    return preferences.reward(prompt, completion, PAIRS)


experiment = StreamExperiment(
    name="lm_rlhf_ppo",
    task=RlhfPpo(
        model=Model(
            folder="runs/lm_sft_preferences/model",
            made_by="jrl run experiments/lm_sft_preferences.py",
        ),
        reward_model=Model(
            folder="runs/lm_reward_model/model",
            made_by="jrl run experiments/lm_reward_model.py",
        ),
        data=Data(open=lambda split: preferences.load(PAIRS, split), held_out=512),
        batches=Batches(prompts=128, lengths=(24,)),
        asking=Asking(
            reward=reward,
            max_new_tokens=12,
            temperature=1.0,
            sampler=sampler.Config(slots=128, length=24, queue=512, buckets=(8,)),
        ),
    ),
    config=rlhf_ppo.Config(updates=120, epochs=2, minibatches=2),
    hyper=rlhf_ppo.Hyper(learning_rate=1e-4, warmup=0.02, anneal=1.0, beta=0.5, gae_lambda=0.95),
    evaluate_every=20,
    metric="eval/reward",
)
