"""Bytes, streams of text, and examples for supervised training with their masks."""

import dataclasses

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_folders import CHATS, FAMILIES, QWEN, TEXTS, save

from jrl.lm import tokenizer as jt


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def ours(family, tmp_path_factory):
    return jt.load(save(tmp_path_factory.mktemp(family), family))


@given(st.text() | st.lists(st.sampled_from(["<eos>", "<bos>", "<pad>", "é", "<"])).map("".join))
def test_bytes_come_back_exactly(text):
    tokenizer = jt.bytes_tokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids, default=0) < tokenizer.vocab_size
    assert tokenizer.encode(text, add_special_tokens=True) == [tokenizer.bos_id, *ids]
    if not {256, 257, 258} & set(ids):
        assert ids == list(text.encode())


@given(st.lists(st.integers(0, 300)))
def test_any_ids_have_a_text(ids):
    kept = bytes(i for i in ids if i < 256)
    assert jt.bytes_tokenizer().decode(ids) == kept.decode(errors="replace")


@given(st.lists(st.integers(0, 258)) | st.text().map(lambda text: list(text.encode())))
def test_a_stream_of_bytes_is_the_text(ids):
    tokenizer = jt.bytes_tokenizer()
    for skip in (True, False):
        stream = jt.Stream(tokenizer, skip_special_tokens=skip)
        pieces = [stream.push(i) for i in ids]
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        assert "".join(pieces) + stream.end() == whole
        assert not any(piece.endswith("\ufffd") for piece in pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_is_the_text_without_half_characters(ours, text):
    ids = [*ours.encode(text), ours.eos_ids[0], *ours.encode(" é")]
    for skip in (True, False):
        stream = jt.Stream(ours, skip_special_tokens=skip)
        pieces = [stream.push(i) for i in ids]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) == ours.decode(ids, skip_special_tokens=skip)
        assert stream.end() == ""


def test_a_stream_keeps_the_spaces_of_decoders_that_drop_the_first():
    """Llama 2's kind: a space before every text, which the decoder takes away again."""
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({"<unk>": 0, "▁a": 1, "▁b": 2, "</s>": 3}, [], unk_token="<unk>")
    )
    model.add_special_tokens(["</s>"])
    model.decoder = tokenizers.decoders.Metaspace()
    tokenizer = dataclasses.replace(
        jt.bytes_tokenizer(),
        to_text=lambda ids, skip: model.decode(ids, skip_special_tokens=skip),
    )
    for ids in ([1, 2, 1], [3, 1, 2], [1, 3, 2, 3, 3, 1]):
        stream = jt.Stream(tokenizer)
        assert "".join(stream.push(i) for i in ids) == tokenizer.decode(ids)


def test_masks_are_what_a_sampler_would_have_drawn(family, ours):
    stop = {"qwen": "<|im_end|>", "llama": "<|eot_id|>", "gemma": "<end_of_turn>"}
    (end,) = ours.encode(stop[family])
    ours = dataclasses.replace(ours, eos_ids=(*ours.eos_ids, end))
    ids, mask = jt.encode_chat(ours, CHATS[1])
    assert len(ids) == len(mask)
    whole = ours.render_chat(CHATS[1], add_generation_prompt=False)
    assert ours.decode(ids, skip_special_tokens=False) == whole
    runs, answers = [i if m else -1 for i, m in zip(ids, mask, strict=True)], [[]]
    for i in runs:
        answers[-1].append(i) if i >= 0 else answers.append([])
    answers = [answer for answer in answers if answer]
    # Llama's and Gemma's templates trim what is said.
    trim = family != "qwen"
    said = [turn["content"] for turn in CHATS[1] if turn["role"] == "assistant"]
    assert [ours.decode(answer) for answer in answers] == [x.strip() if trim else x for x in said]
    assert [answer[-1] for answer in answers] == [end, end]
    # The prompt is the one that a sampler gets, whatever would merge across its end.
    prompt = ours.apply_chat(CHATS[1][:1])
    assert ids[: len(prompt)] == prompt and not any(mask[: len(prompt)]) and mask[len(prompt)]


def test_pieces_are_cut_where_the_model_begins(tmp_path):
    """A line break at the beginning of an answer would merge with the prompt's."""
    tokenizer = jt.load(save(tmp_path, "qwen"), "{{ messages | map(attribute='content') | join }}")
    tokenizer = dataclasses.replace(
        tokenizer, to_chat=lambda m, g: "".join(x["content"] for x in m)
    )
    chat = [
        {"role": "user", "content": "is\n"},
        {"role": "assistant", "content": "\n\nis<|im_end|>"},
    ]
    prompt, whole = tokenizer.encode("is\n"), tokenizer.encode("is\n\n\nis<|im_end|>")
    assert whole[: len(prompt)] != prompt
    ids, mask = jt.encode_chat(tokenizer, chat)
    assert ids[: len(prompt)] == prompt
    assert mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        # The form of Qwen3's: thoughts of earlier turns are left out.
        (
            "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else "
            "m.content.split('|')[-1] }}<|im_end|>{% endfor %}"
            "{{ 'assistant:' if add_generation_prompt }}",
            [("user", "?"), ("assistant", "hm|a"), ("user", "?"), ("assistant", "hm|b")],
            "the chat template changes what precedes or makes up turn 1",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            [("user", "?"), ("assistant", "!")],
            r"turn 1 ends without any of eos_ids=\(2,\)",
        ),
        (QWEN, [("user", "?")], "the assistant must answer"),
        (QWEN, [("assistant", "!")], "may not have the first turn"),
    ],
)
def test_chats_that_teach_something_else_are_refused(tmp_path, template, chat, message):
    tokenizer = jt.load(save(tmp_path, "qwen"), template)
    with pytest.raises(ValueError, match=f"^messages: .*{message}"):
        jt.encode_chat(tokenizer, [{"role": role, "content": text} for role, text in chat])


def test_variables_of_the_template_shape_the_example_too(tmp_path):
    tokenizer = jt.load(save(tmp_path, "qwen"))
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    with pytest.raises(ValueError, match="split the chat"):
        jt.encode_chat(tokenizer, chat, thinking=False)
    ids, _ = jt.encode_chat(tokenizer, chat, tools=[{"name": "add"}])
    assert '# Tools\n{"name": "add"}' in tokenizer.decode(ids)


def test_completions_of_plain_text_end(tmp_path):
    tokenizer = jt.load(save(tmp_path, "llama"))
    ids, mask = jt.encode_completion(tokenizer, "1+1=", " 2")
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|begin_of_text|>1+1= 2<|eot_id|>"
    assert [i for i, ours in zip(ids, mask, strict=True) if ours] == [*tokenizer.encode(" 2"), 4]
