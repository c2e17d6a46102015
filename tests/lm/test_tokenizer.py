"""Tokenizers against transformers' on the same folders: ids, texts, rendered chats."""

import dataclasses
import sys
import time

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizer_folders import CHATS, FAMILIES, SYSTEM, TEXTS, save

from jrl.lm import tokenizer as jt


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def ours(folder):
    return jt.load(folder, strftime_now=time.strftime)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_are_those_of_transformers(ours, theirs, text):
    for special in (False, True):
        ids = theirs(text, add_special_tokens=special)["input_ids"]
        assert ours.encode(text, add_special_tokens=special) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text
        whole = ours.decode(np.array(ids, np.int32), skip_special_tokens=False)
        assert whole == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_numbers_are_those_of_transformers(ours, theirs):
    assert ours.vocab_size == len(theirs)
    assert ours.eos_ids == (theirs.eos_token_id,)
    assert ours.bos_id == theirs.bos_token_id
    expected = theirs.pad_token_id
    assert ours.pad_id == (theirs.eos_token_id if expected is None else expected)


@pytest.mark.parametrize("messages", [*CHATS, SYSTEM + CHATS[1], CHATS[0] * 2])
@pytest.mark.parametrize("generation", [False, True])
def test_chats_are_those_of_transformers(ours, theirs, messages, generation):
    try:
        expected = theirs.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation
        )
    except Exception as error:
        with pytest.raises(ValueError, match=f"chat_template: {error}"):
            ours.render_chat(messages, generation)
        return
    assert ours.render_chat(messages, generation) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=generation, return_dict=False)
    assert ours.apply_chat(messages, generation) == ids


def test_variables_reach_the_template(tmp_path):
    folder = save(tmp_path, "qwen")
    ours, theirs = jt.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    tools = [{"type": "function", "function": {"name": "add", "description": "<é> & 'x'"}}]
    for variables in ({"tools": tools}, {"thinking": False}, {"tools": tools, "thinking": True}):
        expected = theirs.apply_chat_template(
            CHATS[0], tokenize=False, add_generation_prompt=True, **variables
        )
        assert ours.render_chat(CHATS[0], **variables) == expected
    assert "\"<é> & 'x'\"" in ours.render_chat(CHATS[0], tools=tools)


def test_folders_that_transformers_saved(folder, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()
    again = jt.load(tmp_path, strftime_now=time.strftime)
    expected = theirs.apply_chat_template(CHATS[1], return_dict=False)
    assert again.apply_chat(CHATS[1], add_generation_prompt=False) == expected
    assert again.eos_ids == (theirs.eos_token_id,)


def test_named_templates(tmp_path):
    named = [
        {"name": "default", "template": "D{{ messages[0].content }}"},
        {"name": "tool_use", "template": "T{{ tools | length }}"},
    ]
    folder = save(tmp_path, "qwen", chat_template=named)
    chat = [{"role": "user", "content": "x"}]
    assert jt.load(folder).render_chat(chat) == "Dx"
    assert jt.load(folder).render_chat(chat, tools=[{}]) == "T1"
    assert jt.load(folder, "tool_use").render_chat(chat, tools=[{}, {}]) == "T2"
    assert jt.load(folder, "{{ eos_token }}").render_chat(chat) == "<|im_end|>"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "short.jinja").write_text("S")
    (folder / "chat_template.jinja").write_text("F")
    assert jt.load(folder, "short").render_chat(chat) == "S"
    assert jt.load(folder).render_chat(chat) == "F"


def test_the_date_is_given_or_the_templates_own(tmp_path):
    folder = save(tmp_path, "llama")
    assert "Today: 26 Jul 2024" in jt.load(folder).render_chat(CHATS[0])
    dated = jt.load(folder, strftime_now=lambda form: f"now in {form}")
    assert "Today: now in %d %b %Y" in dated.render_chat(CHATS[0])
    needs = jt.load(folder, "{{ strftime_now('%Y') }}")
    with pytest.raises(ValueError, match="pass strftime_now=time.strftime"):
        needs.render_chat(CHATS[0])


def test_stop_ids(tmp_path):
    folder = save(tmp_path, "llama")
    assert jt.load(folder).eos_ids == (4,)
    (folder / "config.json").write_text('{"eos_token_id": 1}')
    assert jt.load(folder).eos_ids == (4, 1)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 3, 4]}')
    assert jt.load(folder).eos_ids == (4, 1, 3)


def test_settings_of_who_saved_it_do_not_cut_texts(tmp_path):
    folder = save(tmp_path, "qwen")
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.enable_truncation(2)
    model.enable_padding(length=50)
    model.save(str(folder / "tokenizer.json"))
    tokenizer = jt.load(folder)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_tokens_that_only_the_config_lists(tmp_path):
    size = jt.load(save(tmp_path, "qwen")).vocab_size
    extra = {str(size): {"content": "<tool>", "special": True}}
    folder = save(tmp_path, "qwen", added_tokens_decoder=extra)
    ours, theirs = jt.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.encode("a<tool>b") == theirs.encode("a<tool>b")
    assert ours.vocab_size == len(theirs) == size + 1
    assert ours.decode([size]) == ""
    # A token of the vocabulary that nobody said was special, until the config named it.
    folder = save(tmp_path, "qwen", pad_token="a")
    assert jt.load(folder).decode(jt.load(folder).encode("bab")) == "bb"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pad_token": "[PAD]"}, r"pad_token '\[PAD\]' is not in tokenizer.json"),
        ({"eos_token": None}, "no end-of-sequence token, name eos_token"),
        ({"added_tokens_decoder": {"7": {"content": "<new>"}}}, "'<new>' has id 7, but"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message) as caught:
        jt.load(save(tmp_path, "qwen", **config))
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_broken(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json: missing, give a folder"):
        jt.load(tmp_path)
    folder = save(tmp_path, "qwen", chat_template=None)
    with pytest.raises(ValueError, match="chat_template: the tokenizer has none, pass one"):
        jt.load(folder).apply_chat(CHATS[0])
    with pytest.raises(ValueError, match="chat_template: "):
        jt.load(folder, "{% if %}").apply_chat(CHATS[0])
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: Expecting"):
        jt.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: "):
        jt.load(folder)


@pytest.mark.parametrize("package", ["tokenizers", "jinja2"])
def test_missing_packages_are_named(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install 'jrl\[lm\]'"):
        jt.load(folder, "a template nobody compiled").apply_chat(CHATS[0])


def test_templates_are_kept_in_a_sandbox(folder):
    for attack in ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.clear() }}"):
        with pytest.raises(ValueError, match="chat_template: "):
            jt.load(folder, attack).render_chat(CHATS[0])


@pytest.mark.parametrize("messages", [[], [{"content": "hi"}]])
def test_messages_are_checked(messages):
    with pytest.raises(ValueError, match="^messages: "):
        jt.bytes_tokenizer().apply_chat(messages)


def test_the_model_may_have_more_ids_but_not_fewer(ours):
    jt.check_vocabulary(ours, ours.vocab_size)
    jt.check_vocabulary(ours, ours.vocab_size + 100)
    with pytest.raises(ValueError, match=f"tokenizer {ours.vocab_size}, use those of one folder"):
        jt.check_vocabulary(ours, ours.vocab_size - 1)
    stops = dataclasses.replace(ours, eos_ids=(1, 5000))
    with pytest.raises(ValueError, match="tokenizer 5001"):
        jt.check_vocabulary(stops, ours.vocab_size)
