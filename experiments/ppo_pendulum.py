"""PPO on Pendulum-v1.

    jrl run experiments/ppo_pendulum.py
"""

from jrl.algos import ppo
from jrl.envs import pendulum
from jrl.experiment import Experiment

experiment = Experiment(
    name="ppo_pendulum",
    make=lambda config: ppo.make(pendulum.make(), config),
    config=ppo.Config(
        num_envs=16,
        num_steps=200,
        epochs=10,
        minibatches=50,
        total_steps=500_000,
        normalize_reward=True,
        normalize_observation=True,
    ),
    hyper=ppo.Hyper(learning_rate=1e-3, gamma=0.9),
    seeds=8,
)
