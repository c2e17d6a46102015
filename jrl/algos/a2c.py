"""Advantage actor-critic: one gradient per short rollout, policy and value together.

    L(theta) = E_t[ -log pi_theta(a_t|s_t) A_t + c_v (V_theta(s_t) - R_t)^2 / 2 - c_e H(pi_theta) ]

with R_t = A_t + V(s_t) constant. Source: Mnih et al. 2016, "Asynchronous methods for deep
reinforcement learning", https://arxiv.org/abs/1602.01783, algorithm S3, in its synchronous form.

Deviations: the workers step together and their gradients are averaged instead of applied one by
one; advantages are GAE with `gae_lambda` (1 gives the paper's n-step returns); a truncated
episode bootstraps from the value of its final observation; policy and value share no layers.
"""

import dataclasses
import functools

import jax
import optax
from flax import struct

from jrl import networks, rollout, train, tree
from jrl.losses import policy_gradient, value
from jrl.types import Algorithm, Leaf, check_sizes

__all__ = ["Batch", "Config", "Hyper", "make", "make_objective", "optimizer"]


class Hyper(struct.PyTreeNode):
    """Numbers that may differ between the members of a population."""

    learning_rate: Leaf = 7e-4
    """Step size of RMSProp."""
    anneal: Leaf = 0.0
    """Share of the learning rate that is gone at the end of training, linearly (0 to 1)."""
    gamma: Leaf = 0.99
    """Discount per step."""
    gae_lambda: Leaf = 1.0
    """Decay of the advantage estimator; 1 sums all rewards of the rollout."""
    value_coef: Leaf = 0.5
    """Weight of the value loss."""
    entropy_coef: Leaf = 0.01
    """Weight of the entropy bonus."""
    max_grad_norm: Leaf = 0.5
    """Largest global norm of the gradient; inf for any."""
    rms_decay: Leaf = 0.99
    """Decay of RMSProp's average of squares."""
    rms_eps: Leaf = 1e-5
    """Epsilon of RMSProp."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, compiled in."""

    num_envs: int = 16
    """Environments stepped together."""
    num_steps: int = 5
    """Steps of each environment between two updates."""
    microbatches: int = 1
    """Parts that one update's gradient is accumulated over."""
    total_steps: int = 500_000
    """Environment steps of the whole run: what annealing refers to."""
    compute_dtype: str = "float32"
    """What the network computes in, float32 or bfloat16; parameters and sums stay float32."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    memory: int = dataclasses.field(default=0, metadata={"may_be_zero": True})
    """Units of the GRU; 0 for a network without memory."""
    normalize_advantage: bool = False
    """Standardise advantages over the batch."""
    eval_episodes: int = 32
    """Episodes of one evaluation."""
    eval_steps: int = dataclasses.field(default=0, metadata={"may_be_zero": True})
    """Steps after which an evaluated episode is left; 0 for the environment's own limit."""
    eval_greedy: bool = False
    """Evaluate the most probable action instead of a sampled one."""

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps between two updates."""
        return self.num_envs * self.num_steps

    def validate(self) -> None:
        """Raises ValueError with the name of the field that does not fit."""
        check_sizes("config", self)
        networks.check_dtype(self.compute_dtype)
        examples = self.num_envs if self.memory else self.steps_per_iteration
        if examples % self.microbatches:
            raise ValueError(
                f"config.microbatches={self.microbatches} must divide the {examples} examples"
            )


class Batch(struct.PyTreeNode):
    """Columns of one iteration: [N, ...] examples, or [B, T, ...] sequences with a memory."""

    observation: Leaf
    reset: Leaf
    carry: Leaf
    action: Leaf
    advantage: Leaf
    target: Leaf


def make_objective(network: networks.Network) -> train.Objective:
    """Makes the objective of the equation above, summed over a (micro)batch."""

    def objective(params, extra, batch, key, hp):
        policy, v = rollout.apply(network, params, batch)
        policy_loss = policy_gradient.reinforce(policy.log_prob(batch.action), batch.advantage)
        value_loss = value.squared_loss(batch.target - v)
        entropy = policy.entropy()
        loss = policy_loss + hp.value_coef * value_loss - hp.entropy_coef * entropy
        columns = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return train.sum_columns(loss, columns)

    return objective


def optimizer(config: Config) -> train.Optimizer:
    """Makes RMSProp with clipping of the global norm and a linearly annealed step size."""
    updates = -(-config.total_steps // config.steps_per_iteration)

    def make_tx(hp):
        return optax.chain(
            optax.clip_by_global_norm(hp.max_grad_norm),
            optax.scale_by_rms(decay=hp.rms_decay, eps=hp.rms_eps),
            optax.scale_by_learning_rate(train.annealed(hp.learning_rate, hp.anneal, updates)),
        )

    return make_tx


def prepare(setup: rollout.Setup, state: train.TrainState, carry, trajectory, hp) -> Batch:
    """Computes the columns: advantages and the targets of the value.

    `carry` is the memory that the trajectory began with.
    """
    _, v_tm1, v_t = rollout.critic(setup.network, state.params, carry, trajectory)
    advantage, target = rollout.advantages(
        trajectory, v_tm1, v_t, hp.gamma, hp.gae_lambda, setup.config.normalize_advantage
    )
    columns = Batch(
        trajectory.observation, trajectory.reset, (), trajectory.action, advantage, target
    )
    if setup.network.recurrent:
        return tree.swap_axes(columns).replace(carry=carry)
    return tree.flatten_axes(columns)


def make(
    env, config: Config, env_params=None, network: networks.Network | None = None
) -> Algorithm:
    """Makes the algorithm for one environment: ours, or any gymnax environment as it is.

    Raises ValueError if the sizes of `config` do not fit together.

    >>> from jrl.envs import cartpole
    >>> algorithm, hp = make(cartpole.make(), Config(num_envs=2)), Hyper()
    >>> state = jax.jit(algorithm.init)(jax.random.key(0), hp)
    >>> state, metrics = jax.jit(algorithm.iterate)(state, hp)
    >>> int(state.iteration), int(state.train.step)
    (1, 1)
    """
    setup = rollout.setup(env, config, env_params, network)
    grad_fn = train.gradient(
        make_objective(setup.network), config.microbatches, config.compute_dtype
    )
    train_step = train.make_train_step(grad_fn, optimizer(config))

    def init(key, hp):
        return setup.init(key, optimizer(config), hp)

    def evaluate(state, key, hp):
        return setup.evaluate(key, setup.policy(state.train.params, config.eval_greedy))

    return Algorithm(
        init,
        functools.partial(_iterate, setup, train_step),
        evaluate,
        config.steps_per_iteration,
    )


def _iterate(setup: rollout.Setup, train_step: train.TrainStep, state: rollout.Learner, hp):
    key = jax.random.fold_in(state.key, state.iteration)
    policy = setup.policy(state.train.params)
    actor, trajectory = rollout.unroll(
        key, setup.batch, setup.env_params, policy, state.actor, setup.config.num_steps
    )
    batch = prepare(setup, state.train, state.actor.carry, trajectory, hp)
    learner, loss = train_step(state.train, batch, hp)
    sums = {**loss.metrics, **rollout.episode_metrics(trajectory)}
    episodes = rollout.remember(state.episodes, trajectory)
    return rollout.Learner(learner, actor, state.iteration + 1, state.key, episodes), sums
