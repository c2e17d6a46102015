"""Does REINFORCE with the batch mean as baseline balance the pole of CartPole-v1?

Command: jrl run experiments/reinforce_cartpole.py
Machine: 2 CPU cores, shared. Wall-clock: 11 to 24 s, of which 4 to 7 s compiling. Seeds: 8.

Result (2 080 000 simulated steps, mean return of 32 sampled episodes, 95 % interval over seeds):
500.0 (500.0 to 500.0). Every iteration simulates 500 steps of 16 environments and learns from one
episode of each, so early on most of the steps are masked out.
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
