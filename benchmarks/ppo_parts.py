"""Where does the time of a PPO iteration go, and what do progress and a mesh cost?

Programs with parts removed, timed in turn: the rollout alone, then with the columns (`prepare`),
with one epoch, with all four, and the whole iteration with its KL divergence after the update.
Differences of neighbours are the parts. Then one program with and without the progress callback
(the bar: less than 2 %), and 8 seeds on one and, by `shard_map`, on two simulated devices.

    python -m benchmarks.ppo_parts [--quick] [--repeats 9]
"""

import dataclasses
import pathlib
import statistics
import sys

import jax
import jax.numpy as jnp
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, human, in_turn, load, quiet_share, save, show, summary
from jrl import loop, rollout, train
from jrl.algos import ppo
from jrl.envs import cartpole

HYPER = ppo.Hyper(learning_rate=2.5e-4, anneal=1.0, entropy_coef=0.01)
SIZES = {"4x128": (4, 128, 64), "64x128": (64, 128, 8), "2048x32": (2048, 32, 1)}
"""Environments, steps, iterations in one timed call."""


@dataclasses.dataclass
class Parts(Options):
    """Options of this benchmark."""

    repeats: int = 9
    """Timed runs of every row; the median is compared."""
    sizes: tuple[str, ...] = ("4x128", "2048x32")
    """Environments x steps between updates; those left out keep their saved rows."""
    points: int = 8
    """Reports of one program where the callback is timed."""
    iterations: int = 64
    """Iterations between two reports."""


def prefixes(config: ppo.Config):
    """Returns (algorithm, name -> iterate) for iterations that stop early."""
    env = cartpole.make()
    algorithm = ppo.make(env, config)
    setup = rollout.setup(env, config)
    grad_fn = train.gradient(ppo.make_objective(setup.network))
    train_step = train.make_train_step(grad_fn, ppo.optimizer(config))

    def partial(columns: bool, epochs: int):
        def iterate(state):
            key = jax.random.fold_in(state.key, state.iteration)
            rollout_key, shuffle_key = jax.random.split(key)
            policy = setup.policy(state.train.params)
            actor, trajectory = rollout.unroll(
                rollout_key, setup.batch, setup.env_params, policy, state.actor, config.num_steps
            )
            kept, learner = trajectory, state.train
            if columns:
                carry = state.actor.carry
                kept = ppo.prepare(setup, learner, carry, trajectory, HYPER)
            if epochs:
                learner, kept = train.train_epochs(
                    train_step, learner, kept, shuffle_key, HYPER, epochs, config.minibatches
                )
            state = state.replace(train=learner, actor=actor, iteration=state.iteration + 1)
            # A barrier: nothing that a later part would read may be optimised away.
            return jax.lax.optimization_barrier((state, kept))

        return iterate

    return algorithm, {
        "rollout": partial(False, 0),
        "+ columns": partial(True, 0),
        "+ 1 epoch": partial(True, 1),
        "+ 4 epochs": partial(True, config.epochs),
        "whole": lambda state: algorithm.iterate(state, HYPER),
    }


def parts(size: str, options: Parts) -> dict:
    """Times the prefixes of an iteration, in microseconds per iteration."""
    envs, steps, iterations = SIZES[size]
    config = ppo.Config(num_envs=envs, num_steps=steps)
    algorithm, iterates = prefixes(config)
    state = jax.jit(algorithm.init)(jax.random.key(0), HYPER)

    def call(iterate):
        def body(state, _):
            state, kept = iterate(state)
            # Means of what was computed leave the loop, the arrays themselves do not.
            return state, [jnp.mean(jnp.asarray(x, jnp.float32)) for x in jax.tree.leaves(kept)]

        run = jax.jit(lambda state: jax.lax.scan(body, state, length=iterations))
        return lambda: run(state)

    calls = {name: call(iterate) for name, iterate in iterates.items()}
    with quiet_share() as share:
        seconds = in_turn(calls, options.repeats)
    micro = {name: summary([1e6 * s / iterations for s in x]) for name, x in seconds.items()}
    return {"size": size, "foreign": share.foreign, "microseconds": micro}


def _program_call(program, algorithm, hps, seeds: int, points: int):
    keys = jax.random.split(jax.random.key(0), seeds)
    # `population` compiles anew every time that it is called; inside `jit`, only once.
    start = jax.jit(lambda keys, hps: loop.population(algorithm, keys, hps))
    return lambda: program(start(keys, hps), hps, points)


def callback(options: Parts) -> dict:
    """Times a program with and without reports, at 4 x 128 and one seed."""
    config = ppo.Config(num_envs=4, num_steps=128, eval_episodes=1)
    algorithm = ppo.make(cartpole.make(), config)
    hps = jax.tree.map(lambda x: jnp.full(1, x), HYPER)
    seen = []
    calls = {}
    for name, report in (("off", None), ("on", lambda point, means: seen.append(means))):
        program = loop.make_program(algorithm, options.iterations, report=report)
        calls[name] = _program_call(program, algorithm, hps, 1, options.points)
    with quiet_share() as share:
        seconds = in_turn(calls, options.repeats)
    # Neighbours in time see the same load, so the ratio is taken pair by pair.
    ratios = [on / off for on, off in zip(seconds["on"], seconds["off"], strict=True)]
    return {
        "seconds": {name: summary(x) for name, x in seconds.items()},
        "cost": statistics.median(ratios) - 1,
        "cost_of_fastest": min(seconds["on"]) / min(seconds["off"]) - 1,
        "foreign": share.foreign,
        "reports_per_program": options.points,
    }


def devices(options: Parts) -> dict:
    """Times 8 seeds at 4 x 128 on one device and split over two."""
    config = ppo.Config(num_envs=4, num_steps=128, eval_episodes=1)
    algorithm = ppo.make(cartpole.make(), config)
    hps = jax.tree.map(lambda x: jnp.full(8, x), HYPER)
    calls = {}
    for count in (1, 2):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), (loop.AXIS,))
        program = loop.make_program(algorithm, 32, mesh if count > 1 else None)
        calls[f"{count} devices"] = _program_call(program, algorithm, hps, 8, 1)
    with quiet_share() as share:
        seconds = in_turn(calls, options.repeats)
    steps = 8 * 32 * config.steps_per_iteration
    rates = {name: summary([steps / s for s in x]) for name, x in seconds.items()}
    return {"steps_per_s": rates, "foreign": share.foreign}


def main(options: Parts) -> None:
    """Measures the parts, the callback and the devices."""
    options = dataclasses.replace(options, repeats=2 if options.quick else options.repeats)
    found = [x for x in load("ppo_parts", "parts", options) if x["size"] not in options.sizes]
    rows = []
    for size in options.sizes:
        result = parts(size, options)
        found.append(result)
        total, before = result["microseconds"]["whole"]["median"], 0.0
        fastest, below = result["microseconds"]["whole"]["min"], 0.0
        for name, x in result["microseconds"].items():
            share = f"{(x['median'] - before) / total:.0%}"
            least = f"{(x['min'] - below) / fastest:.0%}"
            numbers = f"{x['median']:.0f}", f"{x['min']:.0f}"
            rows.append([size, name, *numbers, share, least, result["foreign"]])
            before, below = x["median"], x["min"]
    header = ["size", "up to", "median us", "fastest", "share", "share of fastest", "foreign"]
    show("microseconds of one iteration, cumulative", header, rows)
    report = callback(options)
    cost = f"{report['cost']:.2%}", f"{report['cost_of_fastest']:.2%}"
    show(
        "cost of the progress callback",
        ["reports", "median of pairs", "fastest", "foreign"],
        [[options.points, *cost, report["foreign"]]],
    )
    split = devices(options)
    rows = [[name, human(x["median"]), human(x["max"])] for name, x in split["steps_per_s"].items()]
    show("8 seeds, 4 x 128, steps per second", ["devices", "median", "fastest"], rows)
    save("ppo_parts", {"parts": found, "callback": report, "devices": split}, options)


if __name__ == "__main__":
    import tyro

    jax.config.update("jax_num_cpu_devices", 2)
    main(tyro.cli(Parts))
