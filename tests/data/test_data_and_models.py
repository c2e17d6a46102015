"""Data meet what they are for: tokenizers, rewards and a loss, each from its own room."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrl.data import packing, tokens
from jrl.data.loader import Config, Loader
from jrl.data.tasks import arithmetic, countdown, preferences, strings, task
from jrl.lm.rewards import functions
from jrl.lm.tokenizer import bytes_tokenizer, encode_chat, encode_completion
from jrl.losses import bradley_terry_loss

TOKENIZER = bytes_tokenizer()


def make_encoder(schema):
    return tokens.encoder(
        schema,
        functools.partial(encode_completion, TOKENIZER),
        functools.partial(encode_chat, TOKENIZER),
    )


@pytest.mark.parametrize(
    ("module", "config", "reward"),
    [
        (arithmetic, arithmetic.Config(operations="+-*/", train=50), functions.arithmetic),
        (countdown, countdown.Config(train=50), functions.countdown),
        (strings, strings.Config(train=50), functions.exact_match),
    ],
)
def test_the_completions_of_tasks_earn_their_rewards(module, config, reward):
    for record in task.generate(module.TASK, config, "train"):
        columns = functions.select_columns(reward, record)
        columns = {k: v for k, v in columns.items() if k not in ("prompt", "completion")}
        assert reward(record["prompt"], record["completion"], **columns) == 1.0
        assert reward(record["prompt"], "no answer", **columns) == 0.0


def test_what_is_learnt_of_a_packed_task_is_the_answers():
    records = list(task.generate(arithmetic.TASK, arithmetic.Config(train=40), "train"))
    batch = next(Loader(records, Config(batch_size=2, length=64), make_encoder("completion")))
    answers = {record["prompt"]: record["completion"] for record in records}
    for segment in (segment for row in packing.unpack(batch) for segment in row):
        prompt = TOKENIZER.decode(segment.tokens[~segment.mask])
        learnt = TOKENIZER.decode(segment.tokens[segment.mask], skip_special_tokens=False)
        assert learnt == answers[prompt] + "<eos>"


def test_what_is_learnt_of_a_chat_is_the_answer_after_the_prompt():
    def say(role, content):
        return {"role": role, "content": content}

    prompt = [say("user", "a"), say("assistant", "b"), say("user", "c")]
    record = {"prompt": prompt, "completion": [say("assistant", "d")]}
    (part,) = make_encoder("completion").apply(record)
    learnt = part.tokens[part.mask]
    assert TOKENIZER.decode(learnt, skip_special_tokens=False) == "d<eos>"
    (part,) = make_encoder("messages").apply({"messages": [*prompt, say("assistant", "d")]})
    learnt = part.tokens[part.mask]
    assert TOKENIZER.decode(learnt, skip_special_tokens=False) == "b<eos>d<eos>"


def test_bradley_terry_recovers_the_reward():
    """r(x, y) = scale / n * (wanted letters): the maximum of the likelihood is near the truth."""
    config = preferences.Config(train=1500, scale=4.0)
    records = list(task.generate(preferences.TASK, config, "train"))

    def features(name):
        return jnp.asarray(
            [[sum(c in r["prompt"] for c in r[name]) / 8, r[name].count("a") / 8] for r in records],
            jnp.float32,
        )

    chosen, rejected = features("chosen"), features("rejected")

    def loss(w):
        return jnp.mean(bradley_terry_loss(chosen @ w, rejected @ w))

    step = jax.jit(lambda w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)))
    w = jnp.zeros(2)
    for _ in range(8):
        w = step(w)
    # The standard error of the estimate, from the information of the sample.
    error = np.sqrt(np.diag(np.linalg.inv(jax.hessian(loss)(w) * len(records))))
    assert np.all(np.abs(np.asarray(w) - [4.0, 0.0]) < 3 * error) and error[0] < 0.35
