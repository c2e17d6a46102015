"""A2C on CartPole-v1.

jrl run experiments/a2c_cartpole.py
"""

from jrl.algos import a2c
from jrl.envs import cartpole
from jrl.experiment import Experiment

experiment = Experiment(
    name="a2c_cartpole",
    make=lambda config: a2c.make(cartpole.make(), config),
    config=a2c.Config(num_envs=8, num_steps=16, total_steps=1_000_000),
    hyper=a2c.Hyper(learning_rate=7e-4, anneal=1.0, entropy_coef=0.0),
    seeds=8,
)
