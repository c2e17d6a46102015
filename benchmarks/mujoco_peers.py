"""How fast are the peers of `mujoco_ppo.py`? The half that runs in an environment of its own.

Reads one line per request from standard input and answers with one line of JSON, `{"steps",
"seconds"}` or, where the peer is not installed, `{"error"}`. Nothing of jrl is imported.

    python benchmarks/mujoco_peers.py HalfCheetah-v5
"""

import json
import sys
import time


def stable_baselines(task: str, steps: int = 4096):
    """Returns a function that trains PPO with the paper's sizes for `steps` steps, one thread."""
    import stable_baselines3
    import torch

    torch.set_num_threads(1)
    model = stable_baselines3.PPO(
        "MlpPolicy",
        task,
        learning_rate=3e-4,
        n_steps=2048,
        batch_size=64,
        n_epochs=10,
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}},
        device="cpu",
        seed=0,
    )
    model.learn(2048)

    def learn():
        model.learn(steps, reset_num_timesteps=False)
        return steps

    return learn


def gymnasium_loop(task: str, steps: int = 5000):
    """Returns a function that steps one Gymnasium environment in a Python loop."""
    import gymnasium

    env = gymnasium.make(task)
    env.reset(seed=0)
    env.action_space.seed(0)

    def play():
        for _ in range(steps):
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()
        return steps

    return play


def envpool_batch(task: str, threads: int, envs: int = 33, steps: int = 500):
    """Returns a function that steps 33 environments of EnvPool."""
    import envpool
    import numpy as np

    env = envpool.make(task, "gymnasium", num_envs=envs, num_threads=threads, seed=0)
    env.reset()
    actions = np.random.default_rng(0).normal(size=(steps, envs, *env.action_space.shape))

    def play():
        for action in actions:
            env.step(action)
        return steps * envs

    return play


def main() -> None:
    """Answers requests until the input ends."""
    task = sys.argv[1]
    makers = {
        "stable-baselines3": stable_baselines,
        "gymnasium": gymnasium_loop,
        "envpool 1 thread": lambda task: envpool_batch(task, 1),
        "envpool 2 threads": lambda task: envpool_batch(task, 2),
    }
    made = {}
    for line in sys.stdin:
        name = line.strip()
        try:
            if name not in made:
                made[name] = makers[name](task)
            began = time.perf_counter()
            steps = made[name]()
            answer = {"steps": steps, "seconds": time.perf_counter() - began}
        except ImportError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
