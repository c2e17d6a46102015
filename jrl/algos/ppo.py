"""Proximal policy optimisation: clipped, with a fixed or an adaptive KL penalty, or with neither.

    L(theta) = E_t[ max(-r_t A_t, -clip(r_t, 1 - eps, 1 + eps) A_t) + beta KL(pi_old, pi_theta)
                    + c_v (V_theta - R_t)^2 / 2 - c_e H(pi_theta) ],   r_t = pi_theta / pi_old

Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms",
https://arxiv.org/abs/1707.06347, eqs. 7 to 9 and section 4. Every variant is the same program:
`clip_eps = inf` takes the clipping away, `kl_beta = 0` the penalty, `kl_adapt` switches the
adaptation of beta on, so that all of them `vmap` together as leaves of one `Hyper`.

Where the paper is silent: advantages are standardised over the whole batch (a column, computed
before minibatching); the old policy is evaluated by the same program that is differentiated, so
the first ratio is exactly 1; a truncated episode bootstraps from the value of its final
observation; the gradient's global norm is clipped.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jrl import metrics as stats
from jrl import networks, rollout, train, tree
from jrl.envs.wrappers import clip_action, clipped, normalize_reward
from jrl.losses import policy_gradient, trust_region, value
from jrl.types import Algorithm, Leaf, check_sizes

__all__ = [
    "Batch",
    "Config",
    "Hyper",
    "behaviour",
    "make",
    "make_objective",
    "optimizer",
    "player",
]


class Hyper(struct.PyTreeNode):
    """Numbers that may differ between the members of a population."""

    learning_rate: Leaf = 3e-4
    """Step size of Adam."""
    anneal: Leaf = 0.0
    """Share of the learning rate that is gone at the end of training, linearly (0 to 1)."""
    gamma: Leaf = 0.99
    """Discount per step."""
    gae_lambda: Leaf = 0.95
    """Decay of the advantage estimator."""
    clip_eps: Leaf = 0.2
    """Clipping range of the probability ratio; inf for none."""
    kl_beta: Leaf = 0.0
    """Coefficient of the KL penalty, its first value where it adapts."""
    kl_target: Leaf = 0.01
    """KL divergence (nats) that the adaptive penalty aims at."""
    kl_adapt: Leaf = 0.0
    """1 halves or doubles `kl_beta` when an iteration leaves the target's band, 0 keeps it."""
    value_coef: Leaf = 0.5
    """Weight of the value loss."""
    value_clip: Leaf = float("inf")
    """Clipping range of the change of the value; inf for none."""
    entropy_coef: Leaf = 0.0
    """Weight of the entropy bonus."""
    max_grad_norm: Leaf = 0.5
    """Largest global norm of the gradient; inf for any."""
    adam_eps: Leaf = 1e-5
    """Epsilon of Adam."""
    standardize: Leaf = 1.0
    """1 standardises advantages over the batch, 2 over each minibatch, 0 not at all."""
    log_std: Leaf = 0.0
    """Logarithm of the standard deviation of the first policy, where actions are continuous."""
    clip_action: Leaf = 0.0
    """1 clips actions to the bounds of their space before the environment sees them."""
    scale_reward: Leaf = 1.0
    """0 leaves rewards as they are; matters with config.normalize_reward."""
    filter_observation: Leaf = 1.0
    """0 shows the network raw observations; matters with config.normalize_observation, as do the
    next three."""
    observation_clip: Leaf = 10.0
    """Largest size of a standardised observation."""
    observation_floor: Leaf = 1e-8
    """Least variance that observations are standardised by."""
    observe_first: Leaf = 0.0
    """1 updates the statistics of observations before learning from a batch, and evaluates the old
    policy under the new ones; 0 updates them afterwards, so that the old policy is who acted."""
    time_limit_ends: Leaf = 0.0
    """1 takes a truncation for a termination; 0 bootstraps from the value of what would follow."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes, compiled in."""

    num_envs: int = 8
    """Environments stepped together."""
    num_steps: int = 128
    """Steps of each environment between two updates."""
    epochs: int = 4
    """Passes over the data of one iteration."""
    minibatches: int = 4
    """Updates per pass; must divide num_envs * num_steps (num_envs with a memory)."""
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
    normalize_observation: bool = False
    """Standardise observations by running statistics, updated once per iteration."""
    diagnostics: bool = False
    """Report quantiles of the ratio, the KL divergence and the gradient's norm."""
    normalize_reward: bool = False
    """Divide rewards by the running deviation of the discounted return."""
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
        if examples % (self.minibatches * self.microbatches):
            what = "num_envs" if self.memory else "num_envs * num_steps"
            raise ValueError(
                f"config.minibatches * config.microbatches = "
                f"{self.minibatches * self.microbatches} must divide {what} = {examples}"
            )


class Batch(struct.PyTreeNode):
    """Columns of one iteration: [N, ...] examples, or [B, T, ...] sequences with a memory."""

    observation: Leaf
    reset: Leaf
    carry: Leaf
    action: Leaf
    old: Leaf
    """The distribution that acted."""
    advantage: Leaf
    target: Leaf
    value: Leaf


def make_objective(network: networks.Network) -> train.Objective:
    """Makes the objective of the equation above, summed over a (mini)batch."""

    def objective(params, extra, batch, key, hp):
        policy, v = rollout.apply(network, params, batch)
        log_prob, old_log_prob = policy.log_prob(batch.action), batch.old.log_prob(batch.action)
        kl, entropy = batch.old.kl(policy), policy.entropy()
        log_ratio = log_prob - old_log_prob
        surrogate = policy_gradient.clipped_surrogate(log_ratio, batch.advantage, hp.clip_eps)
        policy_loss = surrogate + extra["kl"].beta * kl
        value_loss = value.clipped_value_loss(v, batch.value, batch.target, hp.value_clip)
        loss = policy_loss + hp.value_coef * value_loss - hp.entropy_coef * entropy
        columns = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "clipped": (jnp.abs(jnp.expm1(log_ratio)) > hp.clip_eps).astype(jnp.float32),
        }
        return train.sum_columns(loss, columns)

    return objective


def optimizer(config: Config) -> train.Optimizer:
    """Makes Adam with clipping of the global norm and a linearly annealed step size."""
    updates = -(-config.total_steps // config.steps_per_iteration)
    updates *= config.epochs * config.minibatches

    def make_tx(hp):
        return optax.chain(
            optax.clip_by_global_norm(hp.max_grad_norm),
            optax.scale_by_adam(eps=hp.adam_eps),
            optax.scale_by_learning_rate(train.annealed(hp.learning_rate, hp.anneal, updates)),
        )

    return make_tx


def prepare(setup: rollout.Setup, state: train.TrainState, carry, trajectory, hp) -> Batch:
    """Computes the columns: old policy, values, advantages and their targets.

    `carry` is the memory that the trajectory began with.
    """
    encode = _encoder(setup, state.extra, hp)
    old, v_tm1, v_t = rollout.critic(setup.network, state.params, carry, trajectory, encode)
    ends = trajectory.truncated & (hp.time_limit_ends > 0)
    trajectory = trajectory.replace(terminated=trajectory.terminated | ends)
    advantage, target = rollout.advantages(trajectory, v_tm1, v_t, hp.gamma, hp.gae_lambda, False)
    advantage = _standardize(advantage, hp.standardize == 1)
    observation = encode(trajectory.observation)
    columns = Batch(
        observation, trajectory.reset, (), trajectory.action, old, advantage, target, v_tm1
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
    >>> config = Config(num_envs=2, num_steps=8, minibatches=2, total_steps=32)
    >>> algorithm, hp = make(cartpole.make(), config), Hyper()
    >>> state = jax.jit(algorithm.init)(jax.random.key(0), hp)
    >>> state, metrics = jax.jit(algorithm.iterate)(state, hp)
    >>> int(state.iteration), int(state.train.step)
    (1, 8)
    """
    setup = rollout.setup(env, config, env_params, network)
    grad_fn = train.gradient(
        make_objective(setup.network), config.microbatches, config.compute_dtype
    )
    train_step = train.make_train_step(grad_fn, optimizer(config))

    def evaluate(state, key, hp):
        return setup.evaluate(key, player(setup, state.train, hp, config.eval_greedy))

    return Algorithm(
        functools.partial(_init, setup),
        functools.partial(_iterate, setup, train_step),
        evaluate,
        config.steps_per_iteration,
    )


def _init(setup: rollout.Setup, key, hp):
    # Bounds far out, only for a beta that adapts: from 0 or infinity there is no way back.
    controller = trust_region.init_kl_penalty(
        hp.kl_beta, hp.kl_target, factor=1.0 + hp.kl_adapt, least=1e-30 * hp.kl_adapt, most=1e30
    )
    extra: dict[str, Any] = {"kl": controller}
    if setup.config.normalize_observation:
        shape = setup.env.observation_space(setup.env_params).shape
        extra["observation"] = stats.RunningStatistics.zeros(shape)
    learner = setup.init(key, optimizer(setup.config), hp, extra, _training_env(setup, hp))
    params = networks.widen(learner.train.params, hp.log_std)
    return learner.replace(train=learner.train.replace(params=params))


def _iterate(setup: rollout.Setup, train_step: train.TrainStep, state: rollout.Learner, hp):
    config, network, learner = setup.config, setup.network, state.train
    rollout_key, shuffle_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
    policy, env = behaviour(setup, learner, hp), _training_env(setup, hp)
    actor, trajectory = rollout.unroll(
        rollout_key, env, setup.env_params, policy, state.actor, config.num_steps
    )
    before, after = learner.extra, _observe(setup, learner.extra, trajectory)
    learner = learner.replace(extra=tree.select(hp.observe_first > 0, after, before))
    batch = prepare(setup, learner, state.actor.carry, trajectory, hp)
    learner, steps = train.train_epochs(
        train_step,
        learner,
        batch,
        shuffle_key,
        hp,
        config.epochs,
        config.minibatches,
        lambda part: part.replace(advantage=_standardize(part.advantage, hp.standardize == 2)),
    )
    new = rollout.apply(network, learner.params, batch)[0]
    kl = batch.old.kl(new)
    controller = trust_region.kl_penalty(before["kl"], jnp.mean(kl))
    learner = learner.replace(extra={**after, "kl": controller})
    sums = {
        **stats.total(steps, (0, 1)),
        **rollout.episode_metrics(trajectory),
        "kl": (jnp.mean(kl), jnp.float32(1)),
        "kl_beta": (controller.beta, jnp.float32(1)),
    }
    if config.diagnostics:
        ratio = jnp.exp(new.log_prob(batch.action) - batch.old.log_prob(batch.action))
        sums |= _diagnostics(ratio=ratio, kl=kl, grad_norm=_norms(steps["grad_norm"]))
    episodes = rollout.remember(state.episodes, trajectory)
    return rollout.Learner(learner, actor, state.iteration + 1, state.key, episodes), sums


def _diagnostics(**columns):
    """Quantiles of columns as metrics, named for example "kl_q99"."""
    percents = (1, 50, 99, 100)
    quantiles = {
        name: jnp.quantile(x.reshape(-1), jnp.array(percents) / 100) for name, x in columns.items()
    }
    return {
        f"{name}_q{percent}": (x[i], jnp.float32(1))
        for name, x in quantiles.items()
        for i, percent in enumerate(percents)
    }


def _norms(sums):
    """Norms of the gradient; infinite where an update was skipped because it was not finite."""
    total, weight = sums
    return jnp.where(weight > 0, total, jnp.inf)


def behaviour(
    setup: rollout.Setup, learner: train.TrainState, hp: Hyper, greedy: bool = False
) -> rollout.Policy:
    """Makes the policy of a state of the training: what acts, or with `greedy` its mode."""
    return setup.policy(learner.params, greedy, _encoder(setup, learner.extra, hp))


def player(
    setup: rollout.Setup, learner: train.TrainState, hp: Hyper, greedy: bool = False
) -> rollout.Policy:
    """Makes the policy that plays outside of training: clipped as actions were in training."""
    act, space = behaviour(setup, learner, hp, greedy), setup.env.action_space(setup.env_params)

    def play(key, carry, observation, reset):
        action, carry, recorded = act(key, carry, observation, reset)
        return clipped(space, action, hp.clip_action), carry, recorded

    return play


def _standardize(advantage, on):
    return jnp.where(on, rollout.standardized(advantage), advantage)


def _training_env(setup: rollout.Setup, hp):
    env = clip_action(setup.batch, hp.clip_action)
    if setup.config.normalize_reward:
        env = normalize_reward(env, hp.gamma, on=hp.scale_reward)
    return env


def _encoder(setup: rollout.Setup, extra, hp):
    if not setup.config.normalize_observation:
        return lambda observation: observation

    def encode(x):
        statistics = extra["observation"]
        scaled = stats.normalize(statistics, x, hp.observation_clip, hp.observation_floor)
        return jnp.where(hp.filter_observation > 0, scaled, x)

    return encode


def _observe(setup: rollout.Setup, extra, trajectory):
    if not setup.config.normalize_observation:
        return extra
    return {**extra, "observation": stats.update(extra["observation"], trajectory.observation)}
