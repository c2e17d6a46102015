"""Every training step is traced once, whatever numbers it is called with later."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from traces import count_traces

from jrl import train
from jrl.algos import a2c, ppo, reinforce
from jrl.envs import cartpole, pendulum

KEY = jax.random.key(0)
SMALL = {"num_envs": 4, "num_steps": 4, "hidden": (4,), "eval_episodes": 2}
ALGORITHMS = {
    "ppo": (ppo, cartpole, {"epochs": 2, "minibatches": 2, "microbatches": 2}),
    "ppo continuous": (ppo, pendulum, {"normalize_observation": True, "normalize_reward": True}),
    "ppo memory": (ppo, cartpole, {"memory": 3, "minibatches": 2}),
    "a2c": (a2c, cartpole, {}),
    "reinforce": (reinforce, cartpole, {}),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_iteration_is_traced_once(name):
    module, env, sizes = ALGORITHMS[name]
    algorithm = module.make(env.make(), module.Config(**{**SMALL, **sizes}))
    hyper = module.Hyper()
    state = algorithm.init(KEY, hyper)
    iterate = count_traces(algorithm.iterate)
    for rate in (1e-3, 1e-4, 0.0):
        state, metrics = iterate(state, dataclasses.replace(hyper, learning_rate=rate))
    jax.block_until_ready(metrics)
    assert int(state.iteration) == 3


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_training_step_is_traced_once(microbatches, dtype):
    def objective(params, extra, batch, key, hp):
        error = jnp.float32(params) - batch
        return train.Loss(jnp.sum(error**2), jnp.float32(batch.size), {}, error)

    grad_fn = train.gradient(objective, microbatches, dtype)
    step = count_traces(train.make_train_step(grad_fn, optax.adam))
    state = train.init(KEY, jnp.float32(0), optax.adam, 0.1)
    before = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state.replace(key=()))
    for i in range(4):
        state, _ = step(state, jnp.arange(4.0) + i, 0.1 * i)
    # What comes out has the types of what went in: nothing is promoted on the way.
    after = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state.replace(key=()))
    assert after == before


def test_the_counter_would_notice():
    step = count_traces(lambda x: x + 1)
    step(jnp.zeros(2))
    with pytest.raises(AssertionError):
        step(jnp.zeros(3))
