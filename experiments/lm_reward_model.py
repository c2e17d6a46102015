"""Does a reward model recover, from which of two answers was preferred, what answers are worth?

Command: jrl run experiments/lm_reward_model.py (after lm_sft_preferences)
Machine: 2 CPU cores, shared. Wall-clock: 119 s. Seeds: 1.

Result (700 updates of 64 pairs): of 512 held-out pairs it prefers the preferred answer in 0.783,
and its loss is 0.484. Choices are noisy: whoever knows the true reward is right in 0.769 of all
pairs, with a loss of 0.473.
"""

from jrl.algos import reward_model
from jrl.data import loader
from jrl.data.tasks import preferences
from jrl.streams import Data, Model, RewardModel, StreamExperiment

PAIRS = preferences.Config(train=50_000, test=512)

experiment = StreamExperiment(
    name="lm_reward_model",
    task=RewardModel(
        model=Model(
            folder="runs/lm_sft_preferences/model",
            made_by="jrl run experiments/lm_sft_preferences.py",
        ),
        data=Data(open=lambda split: preferences.load(PAIRS, split), held_out=512),
        batches=loader.Config(batch_size=64, length=16, pack=False),
    ),
    config=reward_model.Config(updates=700),
    hyper=reward_model.Hyper(learning_rate=3e-4, warmup=0.05, anneal=1.0, centering=0.01),
    evaluate_every=100,
    metric="eval/accuracy",
)
