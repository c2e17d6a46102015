"""Every way to learn from rewards or preferences ends in `pi* = pi_ref exp(r / beta) / Z`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from invariance import HASTE

from jrl.algos import dpo, grpo, reward_model, rlhf_ppo, sft
from jrl.lm import transformer
from jrl.lm.config import Config
from jrl.lm.policy import Frozen, Policy, PreferenceBatch, RolloutBatch, TokenBatch, last_score
from jrl.losses import optimal_log_probs

BETA = 0.5
ROWS = 256
MODEL = transformer.make(
    Config(4, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32)
)
POLICY = Policy(MODEL)


class Task:
    """All answers of a length to one prompt, each worth a number of its own."""

    def __init__(self, length, seed):
        answers = np.array(list(itertools.product(range(4), repeat=length)), np.int32)
        # Without a second token in the prompt, 0 and 0, 0 would look the same to attention.
        self.text = text(np.concatenate([np.tile([1, 0], (len(answers), 1)), answers], axis=1))
        self.rewards = jnp.asarray(np.random.default_rng(seed).normal(size=len(answers)), "float32")
        # Far from uniform, so that an algorithm that forgets the reference is found out.
        self.ref = MODEL.init(jax.random.key(seed))
        self.ref["embedding"] *= 10.0

    def log_probs(self, params):
        """Of all answers, [Y, L] on tokens; their sums over L are normalised."""
        return POLICY.log_probs(params, (), self.text).log_probs_BxL * self.text.mask

    def optimum(self):
        ref = jnp.sum(self.log_probs(self.ref), axis=1)
        np.testing.assert_allclose(jax.nn.logsumexp(ref), 0, atol=1e-5)
        return np.asarray(optimal_log_probs(self.rewards, ref, BETA))

    def divergence(self, params):
        """KL(pi || pi*), exactly."""
        pi = np.asarray(jnp.sum(self.log_probs(params), axis=1), np.float64)
        return float(np.sum(np.exp(pi) * (pi - self.optimum())))

    def sample(self, key, params, group=ROWS):
        log_probs = self.log_probs(params)
        chosen = jax.random.categorical(key, jnp.sum(log_probs, axis=1), shape=(ROWS,))
        return RolloutBatch(
            jax.tree.map(lambda x: x[chosen], self.text),
            log_probs[chosen],
            self.rewards[chosen],
            jnp.ones(ROWS, bool),
            jnp.arange(ROWS, dtype=jnp.int32) // group,
            jnp.zeros(ROWS, bool),
        )

    def preferences(self, key):
        """Pairs whose order is drawn by Bradley and Terry."""
        key_a, key_b, key_c = jax.random.split(key, 3)
        a, b = (jax.random.randint(k, (ROWS,), 0, len(self.rewards)) for k in (key_a, key_b))
        first = jax.random.bernoulli(key_c, jax.nn.sigmoid(self.rewards[a] - self.rewards[b]))
        pair = (jnp.where(first, a, b), jnp.where(first, b, a))
        return PreferenceBatch(*(jax.tree.map(lambda x, i=i: x[i], self.text) for i in pair))


def text(tokens):
    tokens = jnp.asarray(tokens, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return TokenBatch(tokens, places > 1, jnp.ones_like(tokens), places)


def learn(updater, state, hp, draw, updates):
    """Runs `updates` batches as one program; returns the state and the mean metrics."""

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=HASTE)
    def run(state):
        def one(state, i):
            batch = draw(jax.random.fold_in(jax.random.key(9), i), updater.policy(state))
            columns, measured = updater.prepare(state, batch, hp)
            state, sums = updater.update(state, columns, hp)
            return state, measured | sums

        return jax.lax.scan(one, state, jnp.arange(updates))

    return run(state)


def start(updater, params, frozen, hp):
    return updater.init(jax.random.key(3), params, frozen, hp)


def optimise(config, length, seed, hp, draw=None):
    """Runs GRPO from the reference; returns the exact divergence from the optimum."""
    task = Task(length, seed)
    updater = grpo.make(POLICY, config)
    state = start(updater, task.ref, Frozen(reference=task.ref), hp)
    assert task.divergence(task.ref) > 0.1
    state, sums = learn(updater, state, hp, draw(task) if draw else task.sample, config.updates)
    assert np.all(np.asarray(sums["sampler_gap"][0]) < 1e-5)
    return task.divergence(updater.policy(state))


def of_answers(length, **options):
    """A config whose loss is a mean over answers of sums over tokens, as is the objective."""
    return grpo.Config(updates=600, group_size=ROWS, max_new_tokens=length, **options)


@pytest.mark.parametrize("seed", [0, 1])
def test_grpo_with_kl_in_the_loss(seed):
    hp = grpo.Hyper(learning_rate=3e-3, anneal=1.0, beta=BETA)
    assert optimise(of_answers(1, advantage="dr_grpo"), 1, seed, hp) < 0.01


def test_kl_in_the_loss_does_not_see_what_later_tokens_cost():
    hp = grpo.Hyper(learning_rate=3e-3, anneal=1.0, beta=BETA)
    in_loss = optimise(of_answers(2, advantage="dr_grpo"), 2, 0, hp)
    in_reward = optimise(of_answers(2, advantage="dr_grpo", kl_in="reward"), 2, 0, hp)
    assert in_reward < 1e-4
    assert 10 * in_reward < in_loss < 0.01


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_grpo_with_kl_in_the_reward(length, seed):
    hp = grpo.Hyper(learning_rate=3e-3, anneal=1.0, beta=BETA)
    config = of_answers(length, advantage="dr_grpo", kl_in="reward")
    assert optimise(config, length, seed, hp) < 0.01


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_reinforce_with_kl_in_the_reward(length, seed):
    def draw(task):
        def sample(key, params):
            batch = task.sample(key, params)
            ref = POLICY.log_probs(task.ref, (), batch.text).log_probs_BxL
            price = BETA * jnp.sum(batch.sampler_log_probs - ref * batch.text.mask, axis=1)
            return batch.replace(rewards=batch.rewards - price)

        return sample

    hp = grpo.Hyper(learning_rate=3e-3, anneal=1.0)
    assert optimise(of_answers(length, advantage="rloo"), length, seed, hp, draw) < 0.01


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_with_four_models(length, seed, shared_trunk):
    task = Task(length, seed)
    config = rlhf_ppo.Config(updates=400, epochs=2, shared_trunk=shared_trunk, whiten=False)
    hp = rlhf_ppo.Hyper(learning_rate=3e-3, anneal=1.0, beta=BETA, value_clip=jnp.inf)
    updater = rlhf_ppo.make(POLICY, config)
    value = rlhf_ppo.init_value(POLICY, config, jax.random.key(5), task.ref)
    params = {"policy": task.ref, "value": value}
    state = start(updater, params, Frozen(reference=task.ref), hp)
    state, sums = learn(updater, state, hp, task.sample, 400)
    assert task.divergence(updater.policy(state)) < 0.01
    np.testing.assert_allclose(sums["beta"][0], BETA)


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_from_preferences(length, seed):
    task = Task(length, seed)
    updater = dpo.make(POLICY, dpo.Config(updates=1000))
    hp = dpo.Hyper(learning_rate=3e-3, anneal=1.0, beta=BETA)
    state = start(updater, task.ref, Frozen(reference=task.ref), hp)
    state, _ = learn(updater, state, hp, lambda key, params: task.preferences(key), 1000)
    assert task.divergence(updater.policy(state)) < 0.01


def test_reward_model_recovers_rewards_up_to_a_constant():
    task = Task(2, 0)
    updater = reward_model.make(POLICY, reward_model.Config(updates=2000))
    hp = reward_model.Hyper(learning_rate=3e-3, anneal=1.0)
    head = transformer.init_score_head(jax.random.key(1), MODEL.config)
    state = start(updater, {"trunk": task.ref, "score": head}, Frozen(), hp)
    state, _ = learn(updater, state, hp, lambda key, params: task.preferences(key), 2000)
    learned = last_score(
        state.params["score"], POLICY.hidden(state.params["trunk"], (), task.text), task.text.mask
    )
    error = np.asarray(learned - task.rewards)
    assert np.std(error) < 0.1


def test_sft_ends_in_the_distribution_of_its_data():
    task = Task(2, 0)
    target = jnp.asarray(task.optimum())
    updater, hp = sft.make(POLICY, sft.Config(updates=600)), sft.Hyper(learning_rate=3e-3)
    state = start(updater, task.ref, Frozen(), hp)

    def draw(key, params):
        chosen = jax.random.categorical(key, target, shape=(ROWS,))
        return jax.tree.map(lambda x: x[chosen], task.text)

    state, _ = learn(updater, state, hp, draw, 600)
    assert task.divergence(updater.policy(state)) < 0.01
