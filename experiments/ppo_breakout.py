"""PPO on MinAtar Breakout, a gymnax environment used as it is.

jrl run experiments/ppo_breakout.py
"""

from jrl.algos import ppo
from jrl.experiment import Experiment


def make(config: ppo.Config):
    """Makes PPO on gymnax's environment (extra `envs`)."""
    import gymnax

    env, params = gymnax.make("Breakout-MinAtar")
    return ppo.make(env, config, params)


experiment = Experiment(
    name="ppo_breakout",
    make=make,
    config=ppo.Config(
        num_envs=64,
        num_steps=128,
        epochs=4,
        minibatches=8,
        total_steps=10_000_000,
        eval_episodes=64,
    ),
    hyper=ppo.Hyper(learning_rate=5e-3, anneal=1.0, entropy_coef=0.01, value_clip=0.2),
    seeds=2,
)
