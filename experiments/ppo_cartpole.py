"""PPO on CartPole-v1: does it balance the pole, and does the clipping range matter?

jrl run experiments/ppo_cartpole.py
"""

from jrl.algos import ppo
from jrl.envs import cartpole
from jrl.experiment import Experiment

experiment = Experiment(
    name="ppo_cartpole",
    make=lambda config: ppo.make(cartpole.make(), config),
    config=ppo.Config(num_envs=4, num_steps=128, total_steps=500_000),
    hyper=ppo.Hyper(learning_rate=2.5e-4, anneal=1.0, entropy_coef=0.01, value_clip=0.2),
    seeds=8,
    sweep={"clip_eps": (0.1, 0.2)},
)
