"""How many environment steps per second does PPO on CartPole make, learning included?

jrl and rejax 0.1.3 in turn, with 4 environments x 128 steps, 64 x 128 and 2048 x 32, and 1, 8 and
32 seeds under `vmap`; compile seconds apart; and the final returns of whole runs, so that speed
is not bought by not learning. Both: 2 x 64 tanh units, 4 minibatches, 4 epochs, learning rate
2.5e-4, gamma .99, lambda .95, clip .2, entropy .01, value .5, value clip .2, gradient norm .5.
Where they differ, it is rejax that does so: a constant learning rate (jrl anneals), an elementwise
clip of the gradient, an optimizer each for actor and critic. Evaluation: one episode per timed
call of jrl, none of rejax.

rejax 0.1.3 unpacks five values from `step` and dies on gymnax 1.x ("too many values to unpack
(expected 5)"): an adapter here folds terminated | truncated into done.

    python -m benchmarks.ppo_cartpole [--quick] [--repeats 5] [--seeds 1 8 32] [--no-returns]
"""

import dataclasses
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import (
    Options,
    human,
    in_turn,
    load,
    optional,
    quiet_share,
    save,
    show,
    summary,
)
from jrl import loop, metrics
from jrl.algos import ppo
from jrl.envs import cartpole

SIZES = {"4x128": (4, 128, 500_000), "64x128": (64, 128, 1_000_000), "2048x32": (2048, 32, 4e6)}
HYPER = ppo.Hyper(learning_rate=2.5e-4, anneal=1.0, entropy_coef=0.01, value_clip=0.2)
BUDGET = {1: 65_536, 8: 262_144, 32: 262_144}
"""Environment steps of all seeds together in one timed call; at least one iteration."""


@dataclasses.dataclass
class Training(Options):
    """Options of this benchmark."""

    sizes: tuple[str, ...] = ("4x128", "64x128", "2048x32")
    """Environments x steps between updates."""
    seeds: tuple[int, ...] = (1, 8, 32)
    """Sizes of the population."""
    returns: bool = True
    """Also train to the end and evaluate."""
    peer: bool = True
    """Also run rejax, where it is installed."""


class FiveValues:
    """A gymnax 1.x environment whose `step` returns (observation, state, reward, done, info)."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        """Everything else is the environment's."""
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def __deepcopy__(self, memo):
        """rejax copies its configuration; there is nothing to copy."""
        return self

    def step(self, key, state, action, params):
        """Steps and folds the two ways to end into one."""
        observation, state, reward, terminated, truncated, info = self.env.step(
            key, state, action, params
        )
        return observation, state, reward, terminated | truncated, info


def shape(size: str, quick: bool) -> tuple[int, int, int]:
    """Returns environments, steps of a rollout, steps of a whole run."""
    envs, steps, total = SIZES[size]
    return envs, steps, int(total) // (16 if quick else 1)


def ours(size: str, seeds: int, iterations: int, points: int, episodes: int, quick: bool):
    """Returns (start() -> states, program(states) -> (states, result)) of jrl."""
    envs, steps, total = shape(size, quick)
    config = ppo.Config(num_envs=envs, num_steps=steps, total_steps=total, eval_episodes=episodes)
    algorithm = ppo.make(cartpole.make(), config)
    hps = jax.tree.map(lambda x: jnp.full(seeds, x), HYPER)
    program = loop.make_program(algorithm, iterations)

    def start():
        return loop.population(algorithm, jax.random.split(jax.random.key(0), seeds), hps)

    return start, lambda states: program.lower(states, hps, points).compile(), hps


def theirs(rejax, gymnax, size: str, seeds: int, iterations: int, quick: bool):
    """Returns (start() -> states, program, evaluate) of rejax."""
    envs, steps, total = shape(size, quick)
    env, params = gymnax.make("CartPole-v1")
    algorithm = rejax.get_algo("ppo").create(
        env=FiveValues(env),
        env_params=params,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=envs,
        num_steps=steps,
        num_epochs=4,
        num_minibatches=4,
        total_timesteps=total,
        learning_rate=2.5e-4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
    )

    def one(state):
        return jax.lax.scan(
            lambda s, _: (algorithm.train_iteration(s), None), state, length=iterations
        )[0]

    def evaluate(states):
        keys = jax.random.split(jax.random.key(1), seeds)
        return jax.vmap(lambda s, k: algorithm.eval_callback(algorithm, s, k)[1])(states, keys)

    def start():
        keys = jax.random.split(jax.random.key(0), seeds)
        return jax.jit(jax.vmap(algorithm.init_state))(keys)

    return start, jax.jit(jax.vmap(one), donate_argnums=0), evaluate


class Chain:
    """A program that goes on where its last call stopped; `compile_seconds` lies apart."""

    def __init__(self, start, compile_program):
        self.states = start()
        began = time.perf_counter()
        self.program = compile_program(self.states)
        self.compile_seconds = time.perf_counter() - began

    def __call__(self):
        """Runs once more; returns everything that has to be waited for."""
        self.states = self.program(self.states)
        return self.states


def jrl_chain(size, seeds, iterations, quick):
    """Makes the chain of jrl with one evaluated episode per call."""
    start, compile_program, hps = ours(size, seeds, iterations, 1, 1, quick)

    def build(states):
        program = compile_program(states)
        return lambda states: program(states, hps)[0]

    return Chain(start, build)


def rejax_chain(rejax, gymnax, size, seeds, iterations, quick):
    """Makes the chain of rejax."""
    start, program, _ = theirs(rejax, gymnax, size, seeds, iterations, quick)
    return Chain(start, lambda states: program.lower(states).compile())


def rate(size: str, seeds: int, options: Training, rejax, gymnax) -> dict:
    """Times both in turn; returns steps per second of the whole population."""
    envs, steps, _ = shape(size, options.quick)
    budget = BUDGET.get(seeds, 262_144) // (16 if options.quick else 1)
    iterations = max(1, budget // (seeds * envs * steps))
    chains = {"jrl": jrl_chain(size, seeds, iterations, options.quick)}
    if rejax is not None:
        chains["rejax"] = rejax_chain(rejax, gymnax, size, seeds, iterations, options.quick)
    with quiet_share() as share:
        seconds = in_turn(chains, options.repeats)
    count = seeds * iterations * envs * steps
    return {
        "size": size,
        "seeds": seeds,
        "iterations": iterations,
        "foreign": share.foreign,
        "compile_seconds": {who: chain.compile_seconds for who, chain in chains.items()},
        "steps_per_s": {who: summary([count / s for s in x]) for who, x in seconds.items()},
    }


def final_returns(size: str, seeds: int, options: Training, rejax, gymnax) -> dict:
    """Trains to the end and evaluates 128 episodes per seed, actions sampled."""
    envs, steps, total = shape(size, options.quick)
    iterations = -(-total // (envs * steps))
    start, compile_program, hps = ours(size, seeds, iterations, 1, 128, options.quick)
    states = start()
    program = compile_program(states)
    began = time.perf_counter()
    _, history = jax.block_until_ready(program(states, hps))
    result = {"jrl": _scores(metrics.mean(history)["eval/return"], began)}
    if rejax is not None:
        start, run, evaluate = theirs(rejax, gymnax, size, seeds, iterations, options.quick)
        states = start()
        run = run.lower(states).compile()
        began = time.perf_counter()
        states = jax.block_until_ready(run(states))
        seconds = time.perf_counter() - began
        scores = _scores(jnp.mean(evaluate(states), -1), began)
        result["rejax"] = {**scores, "seconds": seconds}
    return {"size": size, "seeds": seeds, "steps_per_seed": iterations * envs * steps, **result}


def _scores(values, began: float) -> dict:
    values = np.ravel(np.asarray(values, float))
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "all": values.tolist(),
        "seconds": time.perf_counter() - began,
    }


def main(options: Training) -> None:
    """Measures rates of all sizes and populations, then the returns of one to eight seeds."""
    rejax = optional("rejax", "rejax==0.1.3") if options.peer else None
    gymnax = optional("gymnax", "jrl[envs]") if rejax is not None else None
    rejax = rejax if gymnax is not None else None
    rates, rows = load("ppo_cartpole", "rates", options), []
    for size in options.sizes:
        for seeds in options.seeds:
            result = rate(size, seeds, options, rejax, gymnax)
            rates = [x for x in rates if (x["size"], x["seeds"]) != (size, seeds)] + [result]
            speed = {who: x["median"] for who, x in result["steps_per_s"].items()}
            seconds = {who: f"{s:.1f}" for who, s in result["compile_seconds"].items()}
            ratio = f"{speed['jrl'] / speed['rejax']:.2f}" if "rejax" in speed else ""
            cells = [[human(speed[w]), seconds[w]] if w in speed else ["", ""] for w in WHO]
            rows.append([size, seeds, *cells[0], *cells[1], ratio, result["foreign"]])
            print(*rows[-1], flush=True)
    header = ["size", "seeds", "jrl", "compile s", "rejax", "compile s", "jrl/rejax", "foreign"]
    show("environment steps per second of all seeds together, learning included", header, rows)
    returns, rows = load("ppo_cartpole", "returns", options), []
    for size in options.sizes if options.returns else ():
        # One seed says little; eight runs of the widest size would take minutes.
        seeds = 1 if size == "2048x32" else min(8, max(options.seeds))
        result = final_returns(size, seeds, options, rejax, gymnax)
        returns = [x for x in returns if x["size"] != size] + [result]
        for who in WHO:
            if who in result:
                x = result[who]
                cells = f"{x['mean']:.0f}", f"{x['min']:.0f}", f"{x['seconds']:.1f}"
                rows.append([size, seeds, result["steps_per_seed"], who, *cells])
                print(*rows[-1], flush=True)
    header = ["size", "seeds", "steps per seed", "who", "mean return", "worst seed", "seconds"]
    show("returns after the whole run, 128 sampled episodes per seed", header, rows)
    save("ppo_cartpole", {"rates": rates, "returns": returns}, options)


WHO = ("jrl", "rejax")

if __name__ == "__main__":
    import tyro

    main(tyro.cli(Training))
