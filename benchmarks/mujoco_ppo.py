"""How fast does the clipping table train, and what bounds it?

Physics alone (jrl's two engines, `mujoco.batch`, EnvPool, Gymnasium in a loop); what a step costs
beyond it by custom call and by callback; an update with a permutation for each run and with one
for all; and whole training of 33 runs against stable-baselines3's PPO with one thread. Everything
in turn in one run.

The peers need an environment of their own, with stable-baselines3, envpool and gymnasium[mujoco]:

    python -m benchmarks.mujoco_ppo --peers PYTHON [--tasks HalfCheetah] [--quick]
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "experiments"))

from ppo_clipping import settings  # noqa: E402

from benchmarks.common import (  # noqa: E402
    Options,
    human,
    in_turn,
    load,
    quiet_share,
    save,
    show,
    summary,
)
from jrl import grid, loop, rollout, train  # noqa: E402
from jrl.algos import ppo  # noqa: E402
from jrl.envs.mujoco import host, native, task  # noqa: E402
from jrl.envs.mujoco.physics import start as begin  # noqa: E402

RUNS = 33


@dataclasses.dataclass
class MuJoCo(Options):
    """Options of this benchmark."""

    tasks: tuple[str, ...] = ("HalfCheetah",)
    """Which of the seven."""
    peers: pathlib.Path | None = None
    """Python of an environment with the peers; None leaves their rows out."""
    steps: int = 200
    """Steps of 33 environments in one timed call of the physics."""


@contextlib.contextmanager
def worker(python: pathlib.Path | None, name: str) -> Iterator[Callable[[str], Callable | None]]:
    """Starts the peers' process; yields name -> a call that waits for it, or None."""
    if python is None:
        yield lambda peer: None
        return
    script = pathlib.Path(__file__).with_name("mujoco_peers.py")
    process = subprocess.Popen(
        [str(python), str(script), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def ask(peer: str) -> dict:
        process.stdin.write(peer + "\n")
        process.stdin.flush()
        for line in iter(process.stdout.readline, ""):
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{python} {script} {name} ended: run it by hand to see why")

    def make(peer: str) -> Callable | None:
        first = ask(peer)
        if "error" in first:
            print(f"{peer} is left out: {first['error']}")
            return None
        steps[peer] = first["steps"]
        return lambda: ask(peer)

    steps: dict[str, int] = {}
    make.steps = steps
    try:
        yield make
    finally:
        process.stdin.close()
        process.wait()


def physics(name: str, options: MuJoCo, peers) -> dict[str, dict]:
    """Steps of 33 environments per second: engines without a policy, and the peers."""
    module = settings.module(name)
    model = task.engine(module.TASK).model
    ctrl = jax.random.normal(jax.random.key(0), (options.steps, RUNS, model.mj.nu))
    keys = jax.random.split(jax.random.key(1), RUNS)
    qpos = jnp.asarray(model.mj.qpos0, jnp.float32)

    def engine(body):
        def start(key):
            drawn = module.TASK.draw(key, qpos, jnp.zeros(model.mj.nv), module.TASK.params)
            return begin(body, *drawn)

        def walk(keys):
            step = jax.vmap(body.step)
            return jax.lax.scan(lambda s, u: (step(s, u), None), jax.vmap(start)(keys), ctrl)[0]

        run = jax.jit(walk)
        return lambda: run(keys)

    rows = {
        "custom call, 1 thread": engine(native.make(model, 1)),
        "custom call, 2 threads": engine(native.make(model, 2)),
        "callback, 2 threads": engine(host.make(model, 2)),
    }
    steps = dict.fromkeys(rows, options.steps * RUNS)
    for peer in ("envpool 1 thread", "envpool 2 threads", "gymnasium"):
        if call := peers(peer):
            rows[peer], steps[peer] = call, peers.steps[peer]
    return rates(rows, steps, options)


def rates(rows: dict[str, Callable], steps: dict[str, int], options: MuJoCo) -> dict[str, dict]:
    """Times rows in turn; returns steps per second of each."""
    seconds = in_turn(rows, options.repeats)
    return {name: summary([steps[name] / s for s in x]) for name, x in seconds.items()}


def population(name: str, kind: task.Engine, steps: int) -> tuple:
    """Returns algorithm, hyper-parameters and keys of the table's 33 runs of one environment."""
    env = settings.environment(name, kind)
    config = dataclasses.replace(settings.CONFIG, num_steps=steps, minibatches=steps // 64)
    hps = grid.stack(settings.HYPER, grid.settings({}, settings.SETTINGS), 3)
    keys = jax.vmap(jax.random.key)(jnp.tile(jnp.arange(3), 11))
    return settings.algorithm(env, config), hps, keys, (env, config)


def overhead(name: str, options: MuJoCo) -> dict[str, dict]:
    """Microseconds of one step of 33 runs: policy, physics and task, by engine, on one device."""
    rows = {}
    for kind in ("native", "callback"):
        algorithm, hps, keys, (env, config) = population(name, kind, 64)
        setup = rollout.setup(env, config, network=settings.network(env, config))
        members = loop.population(algorithm, keys, hps)

        def act(state, hp, setup=setup):
            policy = ppo.behaviour(setup, state.train, hp)
            length = options.steps
            return rollout.unroll(
                state.key, setup.batch, setup.env_params, policy, state.actor, length
            )[1].reward

        run = jax.jit(jax.vmap(act))
        rows[kind] = lambda run=run, members=members, hps=hps: run(members.state, hps)
    seconds = in_turn(rows, options.repeats)
    return {k: summary([1e6 * s / options.steps for s in x]) for k, x in seconds.items()}


def update(name: str, options: MuJoCo) -> dict[str, dict]:
    """Seconds of one iteration's 320 updates of 33 runs, without acting, on one device."""
    steps = 512 if options.quick else 2048
    algorithm, hps, keys, (env, config) = population(name, "auto", steps)
    setup = rollout.setup(env, config, network=settings.network(env, config))
    step = train.make_train_step(
        train.gradient(ppo.make_objective(setup.network)), ppo.optimizer(config)
    )
    members = loop.population(algorithm, keys, hps).state

    def prepare(state, hp):
        policy = ppo.behaviour(setup, state.train, hp)
        _, trajectory = rollout.unroll(
            state.key, setup.batch, setup.env_params, policy, state.actor, config.num_steps
        )
        return ppo.prepare(setup, state.train, (), trajectory, hp)

    batch = jax.jit(jax.vmap(prepare))(members, hps)

    def learn(state, batch, key, hp):
        sizes = config.epochs, config.minibatches
        return train.train_epochs(step, state, batch, key, hp, *sizes)[0].params

    each = jax.jit(jax.vmap(learn))
    shared = jax.jit(jax.vmap(learn, (0, 0, None, 0)))
    one = jax.random.key(0)
    rows = {
        "a permutation for each run": lambda: each(members.train, batch, keys, hps),
        "one permutation for all": lambda: shared(members.train, batch, one, hps),
    }
    return {k: summary(x) for k, x in in_turn(rows, options.repeats).items()}


def training(name: str, options: MuJoCo, peers) -> dict[str, dict]:
    """Environment steps per second of whole training, learning included."""
    steps = 512 if options.quick else 2048
    rows, counts = {}, {}
    for devices in sorted({1, jax.device_count()}):
        algorithm, hps, keys, _ = population(name, "auto", steps)
        mesh = loop.make_mesh(RUNS, devices)
        members = loop.place(loop.population(algorithm, keys, hps), RUNS, mesh)
        hps = loop.place(hps, RUNS, mesh)
        program = loop.make_program(algorithm, 1, mesh).lower(members, hps, 1).compile()
        state = [members]

        def call(program=program, state=state, hps=hps):
            state[0], history = program(state[0], hps)
            return history

        label = f"jrl, {RUNS} runs on {devices} device{'s' * (devices > 1)}"
        rows[label], counts[label] = call, RUNS * steps
    if learn := peers("stable-baselines3"):
        rows["stable-baselines3, 1 run, 1 thread"] = learn
        counts["stable-baselines3, 1 run, 1 thread"] = peers.steps["stable-baselines3"]
    return rates(rows, counts, options)


def main(options: MuJoCo) -> None:
    """Measures every task, prints tables and saves them."""
    if options.quick:
        options = dataclasses.replace(options, repeats=2, steps=50)
    kept = {entry["task"]: entry for entry in load("mujoco_ppo", "tasks", options)}
    for name in options.tasks:
        with worker(options.peers, f"{name}-v5") as peers, quiet_share() as quiet:
            result = {
                "task": name,
                "physics, steps/s": physics(name, options, peers),
                "a step of 33 runs, us": overhead(name, options),
                "an update of 33 runs, s": update(name, options),
                "training, steps/s": training(name, options, peers),
            }
        result["foreign"] = quiet.foreign
        kept[name] = result
        for title, rows in result.items():
            if isinstance(rows, dict):
                cells = [[row, human(x["median"]), human(x["max"])] for row, x in rows.items()]
                show(f"{name}: {title}", ["", "median", "largest"], cells)
        ours = list(result["training, steps/s"].values())
        if options.peers and len(ours) > 2:
            ratio = np.divide(ours[1]["median"], ours[2]["median"])
            print(f"{name}: {ratio:.1f} times stable-baselines3; foreign {quiet.foreign}")
    save("mujoco_ppo", {"runs": RUNS, "tasks": list(kept.values())}, options)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(MuJoCo, description=__doc__))
