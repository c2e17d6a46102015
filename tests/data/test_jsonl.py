"""JSON lines: against `json` on the whole file, and everything that can be wrong with one."""

import json
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jrl.data import sources
from jrl.data.jsonl import JsonLines


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.jsonl"


def records(n, seed=0):
    rng = np.random.default_rng(seed)
    letters = 'aé—漢😀"\\\n{} '
    return [
        {"prompt": f"{k}", "completion": "".join(rng.choice(list(letters), rng.integers(50)))}
        for k in range(n)
    ]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n", "\n  \n\n"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n "])
def test_every_record_by_index(path, ascii_only, newline, last):
    expected = records(40)
    lines = (json.dumps(record, ensure_ascii=ascii_only) for record in expected)
    path.write_bytes((newline.join(lines) + last).encode())
    source = JsonLines(path)
    assert source.schema == "completion" and len(source) == 40
    order = np.random.default_rng(1).permutation(40)
    assert [source[int(n)] for n in order] == [expected[n] for n in order]
    for index in (-1, 40):
        with pytest.raises(IndexError, match="of 40"):
            source[index]


def test_places_count_blank_lines(path):
    path.write_text('\n{"text": "a"}\n\n \n{"text": "b"}\n')
    source = JsonLines(path)
    assert [source.place(n) for n in (0, 1)] == [f"{path}:2", f"{path}:5"]


def test_threads_and_other_processes_read_the_same(path):
    expected = records(300)
    path.write_text("".join(json.dumps(record) + "\n" for record in expected))
    source = JsonLines(path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, range(300))) == expected
    copy = pickle.loads(pickle.dumps(source))
    del source
    assert [copy[n] for n in range(300)] == expected


def test_a_big_file_is_not_in_memory(path):
    line = json.dumps({"text": "x" * 10_000}) + "\n"
    path.write_text(line * 2_000)
    tracemalloc.start()
    source = JsonLines(path)
    for n in range(0, 2_000, 100):
        assert len(source[n]["text"]) == 10_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 2e7 and peak < 1e6


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "completion": "b"', "not JSON: Expecting ',' delimiter at column"),
        ("prompt: a", "not JSON: Expecting value at column 1"),
        ('["prompt", "completion"]', "a line must be one JSON object, got list"),
        ('{"prompt": "a"}', "no column 'completion'"),
        ('{"prompt": "a", "completion": 3}', "completion must be a string"),
        (b'{"prompt": "a", "completion": "\xff"}', "not UTF-8: byte 0xff at position 32"),
    ],
)
def test_a_bad_line_is_named(path, line, reason):
    good = b'{"prompt": "a", "completion": "b"}\n'
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(good + b"\n" + good + line + b"\n" + good)
    with pytest.raises(ValueError) as caught:
        JsonLines(path)
    assert str(caught.value).startswith(f"{path}:4: {reason}")
    assert "\n" not in str(caught.value)
    source = JsonLines(path, check_all=False)
    assert source[1] == source[3] and len(source) == 4
    with pytest.raises(ValueError) as late:
        source[2]
    assert str(late.value) == str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_a_file_without_records_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ValueError, match="train.jsonl: the file has no records"):
        JsonLines(path)


def test_columns_and_schema_can_be_given(path):
    path.write_text('{"q": "1+1", "a": "so #### 2"}\n')
    with pytest.raises(ValueError, match="train.jsonl:1: columns 'q', 'a' are of no known schema"):
        JsonLines(path)
    source = JsonLines(path, {"prompt": "q", "answer": lambda record: record["a"][-1]})
    assert source.schema == "prompt" and source[0]["answer"] == "2"
    path.write_text('{"prompt": "1+1", "completion": "2"}\n')
    assert JsonLines(path, schema="prompt").schema == "prompt"
    with pytest.raises(ValueError, match="train.jsonl:1: no column 'messages'"):
        JsonLines(path, schema="messages")


def test_files_can_be_one_source(tmp_path):
    paths = [tmp_path / f"{n}.jsonl" for n in range(3)]
    expected = records(12)
    for n, path in enumerate(paths):
        part = expected[: 3 + n] if n == 0 else expected[3 * n + n - 1 :][: 3 + n]
        path.write_text("".join(json.dumps(record) + "\n" for record in part))
    source = sources.concatenate([JsonLines(path) for path in paths])
    assert [source[n] for n in range(len(source))] == expected
    assert source.schema == "completion" and source.place(3) == f"{paths[1]}:1"
    with pytest.raises(IndexError, match="record 12 of 12"):
        source[12]
    other = tmp_path / "text.jsonl"
    other.write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match="different schemas: completion, text"):
        sources.concatenate([JsonLines(paths[0]), JsonLines(other)])
    with pytest.raises(ValueError, match="pass at least one"):
        sources.concatenate([])
