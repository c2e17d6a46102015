"""Does a reward model recover, from which of two answers was preferred, what answers are worth?

Command: jrl run experiments/lm_reward_model.py (after lm_sft_preferences)
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
