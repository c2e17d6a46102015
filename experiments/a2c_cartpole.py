"""How well does A2C balance the pole of CartPole-v1?

Command: jrl run experiments/a2c_cartpole.py
Machine: 2 CPU cores, shared. Wall-clock: 7 to 14 s, of which 3 to 6 s compiling. Seeds: 8.

Result (1 000 960 steps, mean return of 32 sampled episodes, 95 % interval over seeds): 491.8
(486.7 to 496.9).
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
