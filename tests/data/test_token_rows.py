"""Tokens and packing: masks by hand, packing against plain loops over lists."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jrl.data import packing, tokens
from jrl.data.tokens import Tokens


def encode(text):
    return list(text.encode())


def chat(messages):
    """The bytes of "role:content;" for each message, of which the assistant's "content;" count."""
    ids, mask = [], []
    for message in messages:
        before, after = encode(message["role"] + ":"), encode(message["content"] + ";")
        ids += before + after
        mask += [False] * len(before) + [message["role"] == "assistant"] * len(after)
    return ids, mask


def say(role, content):
    return {"role": role, "content": content}


def learnt(part):
    return bytes(part.tokens[part.mask].tolist())


def test_prompt_and_completion():
    answer = tokens.completion(encode, start=[1], end=[2, 3])
    (part,) = tokens.encoder("completion", answer).apply({"prompt": "ab", "completion": "c"})
    assert part.tokens.tolist() == [1, 97, 98, 99, 2, 3] and part.tokens.dtype == np.int32
    assert part.mask.tolist() == [False] * 3 + [True] * 3


def test_question_and_answer_are_a_completion():
    record = {"question": "q", "answer": "a", "prompt": "q", "completion": "a"}
    (part,) = tokens.encoder("question_answer", tokens.completion(encode)).apply(record)
    assert learnt(part) == b"a"


def test_text_is_learnt_but_for_its_first_token():
    (part,) = tokens.encoder("text", tokens.completion(encode)).apply({"text": "abc"})
    assert learnt(part) == b"bc"
    begun = tokens.encoder("text", tokens.completion(encode, start=[1])).apply({"text": "abc"})
    assert learnt(begun[0]) == b"abc"


def test_an_empty_prompt_teaches_nothing_about_the_first_token():
    (part,) = tokens.encoder("completion", tokens.completion(encode)).apply(
        {"prompt": "", "completion": "ab"}
    )
    assert part.mask.tolist() == [False, True]


def test_every_turn_of_the_assistant_is_learnt():
    messages = [say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")]
    (part,) = tokens.encoder("messages", chat=chat).apply({"messages": messages})
    assert learnt(part) == b"b;d;"


def test_after_a_prompt_of_messages_only_the_answer_is_learnt():
    prompt = [say("user", "a"), say("assistant", "b"), say("user", "c")]
    record = {"prompt": prompt, "completion": [say("assistant", "d")]}
    (part,) = tokens.encoder("completion", chat=chat).apply(record)
    assert learnt(part) == b"d;" and bytes(part.tokens[:13].tolist()) == b"user:a;assist"
    more = [say("assistant", "d"), say("user", "e"), say("assistant", "f")]
    record = {"prompt": prompt, "chosen": more, "rejected": [say("assistant", "g")]}
    chosen, rejected = tokens.encoder("preference", chat=chat).apply(record)
    assert learnt(chosen) == b"d;f;" and learnt(rejected) == b"g;"


def test_a_pair_has_two_sequences():
    encoder = tokens.encoder("preference", tokens.completion(encode, end=[0]))
    chosen, rejected = encoder.apply({"prompt": "a", "chosen": "b", "rejected": "cd"})
    assert encoder.names == ("chosen", "rejected")
    assert (learnt(chosen), learnt(rejected)) == (b"b\0", b"cd\0")


@pytest.mark.parametrize(
    ("schema", "record", "reason"),
    [
        ("completion", {"prompt": "a", "completion": ""}, "the completion is empty"),
        ("text", {"text": "a"}, "no token to learn"),
        ("messages", {"messages": [say("assistant", "b")]}, "needs `chat`"),
        ("completion", {"prompt": [say("user", "a")], "completion": []}, "needs `chat`"),
    ],
)
def test_what_cannot_be_encoded_is_refused(schema, record, reason):
    encoder = tokens.encoder(schema, tokens.completion(encode))
    with pytest.raises(ValueError, match=reason):
        encoder.apply(record)


def test_prompts_alone_have_no_encoder():
    with pytest.raises(ValueError, match="schema 'prompt' has no completions"):
        tokens.encoder("prompt", tokens.completion(encode))


def ones(n, learnt_from=0):
    return Tokens(np.arange(n, dtype=np.int32), np.arange(n) >= learnt_from)


def test_too_long_is_refused_dropped_or_cut():
    with pytest.raises(ValueError, match="9 tokens do not fit into length=8: raise it, or choose"):
        tokens.fit((ones(9),), 8)
    assert tokens.fit((ones(8),), 8)[0] is not None
    assert tokens.fit((ones(9),), 8, "drop") == (None, False)
    (part,), cut = tokens.fit((ones(9, 7),), 8, "truncate")
    assert cut and part.tokens.tolist() == list(range(8)) and part.mask.sum() == 1
    assert tokens.fit((ones(9, 8),), 8, "truncate") == (None, False)
    # One sequence of a pair without anything to learn makes the pair useless.
    assert tokens.fit((ones(3, 1), ones(9, 8)), 8, "truncate") == (None, False)


def first_fit(sizes, capacity):
    """First-fit of items of one or two sizes, with lists."""
    bins = []
    for n, size in enumerate(sizes):
        for b in bins:
            if all(sum(sizes[k][d] for k in b) + s <= capacity for d, s in enumerate(size)):
                b.append(n)
                break
        else:
            bins.append([n])
    return bins


@hypothesis.given(
    st.integers(1, 2).flatmap(
        lambda d: st.lists(st.lists(st.integers(1, 12), min_size=d, max_size=d))
    ),
    st.integers(12, 30),
)
def test_first_fit_is_that_of_lists(sizes, capacity):
    assert packing.first_fit(sizes, capacity) == first_fit(sizes, capacity)


def test_an_item_larger_than_a_bin_is_refused():
    with pytest.raises(ValueError, match="size 7 does not fit into capacity 6"):
        packing.first_fit([[3], [7]], 6)


@pytest.mark.parametrize("parts", [1, 2])
def test_rows_hold_every_example_whole(parts):
    rng = np.random.default_rng(0)
    examples = [
        tuple(
            Tokens(rng.integers(1, 99, n).astype(np.int32), rng.random(n) < 0.5)
            for n in rng.integers(1, 17, parts)
        )
        for _ in range(50)
    ]
    rows = packing.pack(examples, 32)
    names = ("chosen", "rejected")[: parts if parts > 1 else 0]
    made = packing.fill(rows, len(rows) + 2, 32, names, pad_id=7)
    for part, batch in enumerate(made.values() if names else [made]):
        assert {name: (x.shape, x.dtype.name) for name, x in batch.items()} == {
            "tokens": ((len(rows) + 2, 32), "int32"),
            "mask": ((len(rows) + 2, 32), "bool"),
            "segment_ids": ((len(rows) + 2, 32), "int32"),
            "positions": ((len(rows) + 2, 32), "int32"),
        }
        for b, row in enumerate([*rows, [], []]):
            ids, mask, segments, positions = [], [], [], []
            for segment, example in enumerate(row, 1):
                size = len(example[part].tokens)
                ids += example[part].tokens.tolist()
                mask += example[part].mask.tolist()
                segments += [segment] * size
                positions += range(size)
            rest = 32 - len(ids)
            assert batch["tokens"][b].tolist() == ids + [7] * rest
            assert batch["mask"][b].tolist() == mask + [False] * rest
            assert batch["segment_ids"][b].tolist() == segments + [0] * rest
            assert batch["positions"][b].tolist() == positions + [0] * rest
        back = [segment for row in packing.unpack(batch) for segment in row]
        flat = [example[part] for row in rows for example in row]
        for one, other in zip(back, flat, strict=True):
            np.testing.assert_array_equal(one, other)
    assert sorted(id(e) for row in rows for e in row) == sorted(map(id, examples))


def test_rows_that_do_not_fit_are_refused():
    row = [(ones(4),)]
    with pytest.raises(ValueError, match="2 rows do not fit into batch_size=1"):
        packing.fill([row, row], 1, 4)
    with pytest.raises(ValueError, match="does not fit into 7"):
        packing.fill([row + row], 1, 7)
