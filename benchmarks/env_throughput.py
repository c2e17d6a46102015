"""How many environment steps per second, with random actions and automatic resets, in one jit?

jrl against gymnax (CartPole, Pendulum, MountainCar, Acrobot) and against Gymnasium's own
vectorised NumPy CartPole. All jax programs carry the observation through their scan and sum
rewards and ends of episodes. jrl draws all randomness of a chunk of steps at once
(`VectorEnvironment.draw`, the actions with it) and then runs deterministic physics (`advance`), as
`rollout.unroll` does. gymnax splits keys, samples from its action space and resets every
environment in every step, as its examples do; in the row "gymnax, given" it gets jrl's cheap
actions, so that nothing but the way of stepping differs. NumPy gets its actions in one draw.

    python -m benchmarks.env_throughput [--quick] [--repeats 5]
"""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks.common import Options, human, in_turn, optional, quiet_share, save, show, summary
from jrl import rng
from jrl.envs import acrobot, cartpole, mountain_car, pendulum
from jrl.envs.wrappers import vectorize

ENVIRONMENTS = {
    "CartPole-v1": cartpole.make,
    "Pendulum-v1": pendulum.make,
    "MountainCar-v0": mountain_car.make,
    "Acrobot-v1": acrobot.make,
}
WHO = ("jrl", "gymnax", "gymnax, given", "gymnasium numpy")
STEPS = {1: 16_384, 64: 4_096, 2048: 512, 16384: 128}


@dataclasses.dataclass
class Throughput(Options):
    """Options of this benchmark."""

    chunk: int = 131_072
    """Environment steps whose randomness jrl draws at once: some MB, so that it stays in cache."""


def actions_of(env, params, key, shape):
    """Draws random actions with one hash for each."""
    space = env.action_space(params)
    u = jax.random.uniform(rng.fast(key), shape)
    if hasattr(space, "n"):
        return (u * space.n).astype(jnp.int32)
    low, high = jnp.ravel(jnp.asarray(space.low))[0], jnp.ravel(jnp.asarray(space.high))[0]
    return (low + u * (high - low))[..., None]


def program(env, params, draw, advance, n: int, steps: int, chunk: int, sample=False):
    """Makes run(key, (observation, state)): chunks of a draw and a scan over its steps.

    With `sample` it is `advance` that chooses the actions.
    """

    def one_chunk(carry, key):
        noise_key, action_key = jax.random.split(key)
        actions = None if sample else actions_of(env, params, action_key, (chunk, n))
        noise = draw(noise_key, chunk)

        def body(carry, x):
            _, state, rewards, ends = carry
            observation, state, reward, terminated, truncated, _ = advance(x[0], state, x[1])
            ends = ends + (terminated | truncated)
            return (observation, state, rewards + reward, ends), None

        return jax.lax.scan(body, carry, (noise, actions))

    @jax.jit
    def run(key, start):
        carry = (*start, jnp.zeros(n), jnp.zeros(n, jnp.int32))
        carry, _ = jax.lax.scan(
            lambda c, k: (one_chunk(c, k)[0], None), carry, jax.random.split(key, steps // chunk)
        )
        observation, state, rewards, ends = carry
        return observation, state, jnp.sum(rewards), jnp.sum(ends)

    return run


def ours(make, n: int, steps: int, chunk: int):
    """Returns a call that runs jrl's environment."""
    env = vectorize(make(), n)
    params = env.default_params

    def draw(key, length):
        return jax.vmap(env.draw, (0, None))(jax.random.split(key, length), params)

    def advance(noise, state, action):
        return env.advance(noise, state, action, params)

    run = program(env, params, draw, advance, n, steps, chunk)
    start = env.reset(jax.random.key(0), params)
    return lambda: run(jax.random.key(1), start)


def theirs(gymnax, name: str, n: int, steps: int, chunk: int, sample: bool):
    """Returns a call that runs gymnax's environment the way its examples do."""
    env, params = gymnax.make(name)
    reset, step = jax.vmap(env.reset, (0, None)), jax.vmap(env.step, (0, 0, 0, None))

    def draw(key, length):
        return jax.random.split(key, length)

    def advance(key, state, action):
        if sample:
            key, action_key = jax.random.split(key)
            action = jax.vmap(env.action_space(params).sample)(jax.random.split(action_key, n))
        observation, state, reward, terminated, truncated, info = step(
            jax.random.split(key, n), state, action, params
        )
        return observation, state, reward.reshape(n), terminated, truncated, info

    run = program(env, params, draw, advance, n, steps, chunk, sample)
    start = reset(jax.random.split(jax.random.key(0), n), params)
    return lambda: run(jax.random.key(1), start)


def numpy_cartpole(gymnasium, n: int, steps: int):
    """Returns a call that runs Gymnasium's CartPole written in NumPy for a batch."""
    env = gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    generator = np.random.default_rng(0)

    def run():
        for action in generator.integers(0, 2, (steps, n)):
            env.step(action)

    return run


def measure(name: str, make, n: int, options: Throughput, gymnax, gymnasium) -> dict:
    """Times one environment at one size; returns rows of steps per second."""
    steps = STEPS[n] // 16 if options.quick else STEPS[n]
    chunk = min(steps, max(8, min(256, options.chunk // n)))
    calls = {"jrl": ours(make, n, steps, chunk)}
    if gymnax is not None:
        calls["gymnax"] = theirs(gymnax, name, n, steps, chunk, True)
        calls["gymnax, given"] = theirs(gymnax, name, n, steps, chunk, False)
    if gymnasium is not None and name == "CartPole-v1" and n > 1:
        calls["gymnasium numpy"] = numpy_cartpole(gymnasium, n, steps)
    with quiet_share() as load:
        seconds = in_turn(calls, options.repeats, least=0.05)
    rates = {who: summary([n * steps / s for s in times]) for who, times in seconds.items()}
    return {"env": name, "n": n, "chunk": chunk, "foreign": load.foreign, "steps_per_s": rates}


def main(options: Throughput) -> None:
    """Measures all environments at all sizes."""
    gymnax = optional("gymnax", "jrl[envs]")
    gymnasium = optional("gymnasium", "jrl[envs]")
    results, rows = [], []
    for name, make in ENVIRONMENTS.items():
        for n in STEPS:
            result = measure(name, make, n, options, gymnax, gymnasium)
            results.append(result)
            median = {who: x["median"] for who, x in result["steps_per_s"].items()}
            ratios = [f"{median['jrl'] / median[w]:.2f}" if w in median else "" for w in WHO[1:]]
            cells = [human(median[who]) if who in median else "" for who in WHO]
            rows.append([name, n, *cells, *ratios, result["foreign"]])
            print(*rows[-1], flush=True)
    header = ["environment", "n", *WHO, *(f"jrl/{who}" for who in WHO[1:]), "foreign"]
    show("steps per second, random actions, medians", header, rows)
    save("env_throughput", {"results": results}, options)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Throughput))
