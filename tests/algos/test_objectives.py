"""What holds for every objective: microbatches, devices and padding do not change the gradient."""

import jax
import jax.numpy as jnp
import pytest
from algorithms import ALGORITHMS
from invariance import gradient, same
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jrl import rollout
from jrl.algos import reinforce
from jrl.envs import cartpole


def parts(name, memory=0):
    """Returns (objective, train state, batch, hyper) after one rollout of CartPole."""
    case = ALGORITHMS[name]
    config = case.config.__class__(**{**vars(case.config), "memory": memory})
    setup = rollout.setup(cartpole.make(), config)
    algorithm = case.module.make(cartpole.make(), config)
    state = jax.jit(algorithm.init)(jax.random.key(0), case.hyper)
    actor = state.actor

    @jax.jit
    def collect():
        policy = setup.policy(state.train.params)
        _, trajectory = rollout.unroll(
            jax.random.key(1), setup.batch, setup.env_params, policy, actor, config.num_steps
        )
        return case.module.prepare(setup, state.train, actor.carry, trajectory, case.hyper)

    extra_arguments = (config,) if case.module is reinforce else ()
    objective = case.module.make_objective(setup.network, *extra_arguments)
    return objective, state.train, collect(), case.hyper


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("memory", [0, 8])
def test_one_and_four_microbatches(name, memory):
    objective, *rest = parts(name, memory)
    same(gradient(objective, *rest), gradient(objective, *rest, microbatches=4), 2e-5)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_and_eight_devices(name):
    objective, state, batch, hp = parts(name)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    state8 = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    same(gradient(objective, state, batch, hp), gradient(objective, state8, sharded, hp), 2e-5)


@pytest.mark.parametrize("name", [n for n in ALGORITHMS if n.startswith("reinforce")])
def test_steps_after_the_end_of_an_episode_do_not_count(name):
    """Whatever stands behind the mask leaves loss and gradient as they were."""
    objective, state, batch, hp = parts(name)
    mask = batch.mask.at[:, 2:].set(False)
    short = jax.tree.map(lambda x: x[:, :2], batch.replace(carry=())).replace(carry=batch.carry)
    junk = batch.replace(mask=mask, weight=jnp.where(mask, batch.weight, 1e6))
    same(gradient(objective, state, junk, hp), gradient(objective, state, short, hp))
