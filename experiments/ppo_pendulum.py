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
        num_envs=64,
        num_steps=64,
        epochs=8,
        minibatches=16,
        total_steps=1_000_000,
        normalize_observation=True,
        normalize_reward=True,
        eval_greedy=True,
    ),
    hyper=ppo.Hyper(learning_rate=1e-3, anneal=1.0, gamma=0.95),
    seeds=8,
)
