"""Every on-policy algorithm at a size for tests: what each test of all of them runs over."""

from typing import NamedTuple

from jrl.algos import a2c, ppo, reinforce
from jrl.types import PyTree


class Case(NamedTuple):
    module: object
    config: object
    hyper: PyTree
    iterations: int

    def make(self, env, **config):
        changed = self.config.__class__(**{**vars(self.config), **config})
        return self.module.make(env, changed)


ALGORITHMS = {
    "ppo": Case(
        ppo,
        ppo.Config(
            num_envs=32, num_steps=8, minibatches=4, hidden=(16,), eval_episodes=4, eval_steps=8
        ),
        ppo.Hyper(learning_rate=1e-2, gamma=0.5, gae_lambda=1.0, max_grad_norm=10.0),
        40,
    ),
    "a2c": Case(
        a2c,
        a2c.Config(num_envs=32, num_steps=8, hidden=(16,), eval_episodes=4, eval_steps=8),
        a2c.Hyper(learning_rate=1e-2, gamma=0.5, entropy_coef=0.0, max_grad_norm=10.0),
        250,
    ),
    **{
        f"reinforce_{baseline}": Case(
            reinforce,
            reinforce.Config(
                num_envs=64,
                num_steps=4,
                hidden=(16,),
                baseline=baseline,
                eval_episodes=4,
                eval_steps=8,
            ),
            reinforce.Hyper(learning_rate=2e-2, gamma=0.5),
            150,
        )
        for baseline in reinforce.BASELINES
    },
}
