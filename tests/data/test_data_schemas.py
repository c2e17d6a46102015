"""Schemas: what is recognised, completed and refused."""

import pytest

from jrl.data import schemas

USER, ANSWER, OTHER = (
    {"role": role, "content": text}
    for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "What?"))
)


@pytest.mark.parametrize(
    ("record", "schema"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "preference"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"prompt": "a", "completion": "b", "reward": 1.0}, "completion"),
        ({"question": "a", "answer": "b"}, "question_answer"),
        ({"prompt": "a", "answer": "b"}, "prompt"),
        ({"text": "a"}, "text"),
    ],
)
def test_schemas_are_recognised_and_whole(record, schema):
    assert schemas.detect(record) == schema
    assert (
        schemas.check(record, schema).items()
        >= {k: v for k, v in record.items() if k not in ("chosen", "rejected")}.items()
    )


def test_unknown_columns_are_listed():
    with pytest.raises(ValueError, match="'instruction', 'output' are of no known schema"):
        schemas.detect({"instruction": "a", "output": "b"})


def test_the_shared_prompt_of_messages_leaves_both_an_answer():
    record = schemas.check({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "preference")
    assert record == {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}
    same = schemas.check({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "preference")
    assert same == {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}


def test_the_shared_prompt_of_transcripts_ends_at_the_last_common_turn():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    pair = {"chosen": start + " yes, d", "rejected": start + " yes, e"}
    assert schemas.check(pair, "preference") == {
        "prompt": start,
        "chosen": " yes, d",
        "rejected": " yes, e",
    }
    with pytest.raises(ValueError, match="do not begin with a common one"):
        schemas.check({"chosen": "a", "rejected": "b"}, "preference")


@pytest.mark.parametrize(
    ("record", "schema", "reason"),
    [
        ({"prompt": "", "completion": "b"}, "completion", "prompt is empty"),
        ({"prompt": 3, "completion": "b"}, "completion", "prompt must be a string, got int '3'"),
        ({"prompt": "a", "completion": None}, "completion", "completion must be .*, got null"),
        ({"prompt": "a", "completion": ["b"]}, "completion", "completion must be .*, got a list"),
        ({"prompt": "a"}, "completion", "no column 'completion' .completion., only 'prompt'"),
        ({"prompt": [USER], "completion": "b"}, "completion", "list of messages"),
        ({"prompt": [USER, ANSWER], "completion": [ANSWER]}, "completion", "the last message"),
        ({"prompt": "a", "chosen": "b", "rejected": 1}, "preference", "rejected must be a string"),
        ({"chosen": "b", "rejected": [USER]}, "preference", "both be strings or both lists"),
        ({"messages": []}, "messages", "not empty, got a list"),
        ({"messages": [USER]}, "messages", "none has the role 'assistant'"),
        ({"messages": [USER, "Hello"]}, "messages", r"messages\[1\] must be an object"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages", r"messages\[1\].content"),
        ({"text": ""}, "text", "text is empty"),
    ],
)
def test_bad_records_are_refused_in_one_line(record, schema, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        schemas.check(record, schema)
    assert "\n" not in str(caught.value)


def test_a_message_may_only_call_tools():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    assert schemas.check({"messages": [USER, call]}, "messages")


def test_columns_are_renamed_or_made():
    columns = {"prompt": "question", "answer": lambda record: record["solution"].split("#### ")[1]}
    record = schemas.select({"question": "q", "solution": "s #### 4"}, columns)
    assert record == {"question": "q", "solution": "s #### 4", "prompt": "q", "answer": "4"}
    with pytest.raises(ValueError, match="no column 'query' to make 'prompt' of, only 'question'"):
        schemas.select({"question": "q"}, {"prompt": "query"})
    with pytest.raises(ValueError, match="answer: KeyError: 'solution'"):
        schemas.select({"question": "q"}, {"answer": columns["answer"]})
