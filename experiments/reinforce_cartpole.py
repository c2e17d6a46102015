"""REINFORCE on CartPole-v1.

jrl run experiments/reinforce_cartpole.py
"""

from jrl.algos import reinforce
from jrl.envs import cartpole
from jrl.experiment import Experiment

experiment = Experiment(
    name="reinforce_cartpole",
    make=lambda config: reinforce.make(cartpole.make(), config),
    config=reinforce.Config(num_envs=16, num_steps=500, total_steps=2_000_000),
    hyper=reinforce.Hyper(learning_rate=1e-2),
    seeds=8,
)
