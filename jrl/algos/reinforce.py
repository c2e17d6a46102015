"""REINFORCE: the policy gradient of whole episodes, with rewards to go and a baseline.

    grad J(theta) ~ (1/N) sum_i sum_t grad log pi_theta(a_{i,t}|s_{i,t}) (Q_{i,t} - b_{i,t}),
    Q_{i,t} = sum_{t' >= t} gamma^{t'-t} r_{i,t'}

Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning", https://doi.org/10.1007/BF00992696; the reward to go of Sutton et al.
1999. The baseline b is nothing, the mean over the N episodes at the same step, the mean over
the others ("leave_one_out"), or a learnt state value V(s_{i,t}).

Every iteration plays one episode in each of N environments from its start, so no episode is cut
in two and short ones do not count more often. What the environments do after their first
episode is masked out (and counted in the steps). Where the episode was truncated the value
baseline bootstraps; the other baselines know no value and take the task to end there.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jrl import networks, rollout, train, tree
from jrl.losses import policy_gradient, returns, value
from jrl.types import Algorithm, Array, Leaf, check_sizes

__all__ = ["BASELINES", "Batch", "Config", "Hyper", "make", "make_objective", "optimizer"]

BASELINES = ("none", "batch_mean", "leave_one_out", "value")


class Hyper(struct.PyTreeNode):
    """Numbers that may differ between the members of a population."""

    learning_rate: Leaf = 1e-2
    """Step size of Adam."""
    anneal: Leaf = 0.0
    """Share of the learning rate that is gone at the end of training, linearly (0 to 1)."""
    gamma: Leaf = 0.99
    """Discount per step."""
    value_coef: Leaf = 0.5
    """Weight of the value loss, for the baseline "value"."""
    entropy_coef: Leaf = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: Leaf = float("inf")
    """Largest global norm of the gradient; inf for any."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and names, compiled in."""

    num_envs: int = 16
    """Episodes of one iteration: N."""
    num_steps: int = 500
    """Steps after which an episode is left, as if the task ended there (unless the baseline is the
    value); the metric `unfinished` is the share of such episodes."""
    baseline: str = "batch_mean"
    """One of none, batch_mean, leave_one_out, value."""
    microbatches: int = 1
    """Parts that one update's gradient is accumulated over; must divide num_envs."""
    total_steps: int = 1_000_000
    """Environment steps of the whole run: what annealing refers to."""
    compute_dtype: str = "float32"
    """What the network computes in, float32 or bfloat16; parameters and sums stay float32."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    memory: int = dataclasses.field(default=0, metadata={"may_be_zero": True})
    """Units of the GRU; 0 for a network without memory."""
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
        if self.baseline not in BASELINES:
            raise ValueError(
                f"config.baseline must be one of {', '.join(BASELINES)}, got {self.baseline!r}"
            )
        if self.num_envs % self.microbatches:
            raise ValueError(
                f"config.microbatches={self.microbatches} must divide num_envs={self.num_envs}"
            )


class Batch(struct.PyTreeNode):
    """Columns of one iteration: episodes [N, T, ...], `mask` 1 until their end."""

    observation: Leaf
    reset: Leaf
    carry: Leaf
    action: Leaf
    weight: Leaf
    """Q - b, or Q where there is no baseline."""
    target: Leaf
    mask: Leaf


def make_objective(network: networks.Network, config: Config) -> train.Objective:
    """Makes the objective whose gradient is the equation above: summed, weighing N episodes."""

    def objective(params, extra, batch, key, hp):
        policy, v = rollout.apply(network, params, batch, sequences=True)
        policy_loss = policy_gradient.reinforce(policy.log_prob(batch.action), batch.weight)
        entropy = policy.entropy()
        columns = {"policy_loss": policy_loss, "entropy": entropy}
        loss = policy_loss - hp.entropy_coef * entropy
        if config.baseline == "value":
            columns["value_loss"] = value.squared_loss(batch.target - v)
            loss = loss + hp.value_coef * columns["value_loss"]
        sums = train.sum_columns(loss, columns, batch.mask)
        return sums._replace(weight=jnp.float32(batch.mask.shape[0]))

    return objective


def optimizer(config: Config) -> train.Optimizer:
    """Makes Adam with clipping of the global norm and a linearly annealed step size."""
    updates = -(-config.total_steps // config.steps_per_iteration)

    def make_tx(hp):
        return optax.chain(
            optax.clip_by_global_norm(hp.max_grad_norm),
            optax.scale_by_adam(),
            optax.scale_by_learning_rate(train.annealed(hp.learning_rate, hp.anneal, updates)),
        )

    return make_tx


def prepare(setup: rollout.Setup, state: train.TrainState, carry, trajectory, hp) -> Batch:
    """Computes the columns: the mask of each first episode, rewards to go and the baseline."""
    done = _done(trajectory)
    mask = (jnp.cumsum(done, axis=0) - done) == 0
    discount = hp.gamma * (1.0 - trajectory.terminated)
    _, v_tm1, v_t = rollout.critic(setup.network, state.params, carry, trajectory)
    baseline = setup.config.baseline
    known = ~trajectory.terminated if baseline == "value" else False
    v_end = jnp.where(known, v_t, 0.0)
    target = returns.discounted_returns(trajectory.reward, discount, v_end, done, mask)
    weight = {
        "none": lambda: target,
        "batch_mean": lambda: policy_gradient.batch_mean_baseline(target, mask, axis=1),
        "leave_one_out": lambda: policy_gradient.leave_one_out_baseline(target, mask, axis=1),
        "value": lambda: policy_gradient.state_value_baseline(target, v_tm1),
    }[baseline]()
    columns = Batch(
        trajectory.observation, trajectory.reset, (), trajectory.action, weight, target, mask
    )
    return tree.swap_axes(columns).replace(carry=carry)


def make(
    env, config: Config, env_params=None, network: networks.Network | None = None
) -> Algorithm:
    """Makes the algorithm for one environment: ours, or any gymnax environment as it is.

    Raises ValueError if the sizes of `config` do not fit together.

    >>> from jrl.envs import cartpole
    >>> algorithm, hp = make(cartpole.make(), Config(num_envs=2, num_steps=20)), Hyper()
    >>> state = jax.jit(algorithm.init)(jax.random.key(0), hp)
    >>> state, metrics = jax.jit(algorithm.iterate)(state, hp)
    >>> int(state.iteration), int(state.train.step)
    (1, 1)
    """
    setup = rollout.setup(env, config, env_params, network)
    grad_fn = train.gradient(
        make_objective(setup.network, config), config.microbatches, config.compute_dtype
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


def _done(trajectory: rollout.Trajectory) -> Array:
    return jnp.asarray(trajectory.terminated | trajectory.truncated, bool)


def _iterate(setup: rollout.Setup, train_step: train.TrainStep, state: rollout.Learner, hp):
    key = jax.random.fold_in(state.key, state.iteration)
    env_key, rollout_key = jax.random.split(key)
    actor = setup.start(env_key)
    end, trajectory = rollout.unroll(
        rollout_key,
        setup.batch,
        setup.env_params,
        setup.policy(state.train.params),
        actor,
        setup.config.num_steps,
    )
    batch = prepare(setup, state.train, actor.carry, trajectory, hp)
    learner, loss = train_step(state.train, batch, hp)
    sums = {
        **loss.metrics,
        **rollout.episode_metrics(trajectory, tree.swap_axes(batch.mask)),
        "unfinished": (
            jnp.sum(batch.mask[:, -1] & ~_done(trajectory)[-1]),
            jnp.float32(setup.config.num_envs),
        ),
    }
    episodes = rollout.remember(state.episodes, trajectory)
    return rollout.Learner(learner, end, state.iteration + 1, state.key, episodes), sums
