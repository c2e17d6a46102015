"""tensorflow-datasets by name: prepared folders, GSM8K's own builder, and what is not there."""

import json
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as library

from jrl.data import tfds

QUESTIONS = [
    {"question": f"What is {n} + é?", "answer": f"It is <<{n}+1={n + 1}>>so.\n#### {n + 1}"}
    for n in range(7)
]


class Pairs(library.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set that is known by its files alone: transcripts, and columns of other types."""

    VERSION = library.core.Version("1.2.0")
    name = "transcripts"

    def _info(self):
        features = {
            "chosen": library.features.Text(),
            "rejected": library.features.Text(),
            "turns": library.features.Sequence({"speaker": library.features.Text()}),
            "score": np.float64,
            "safe": np.bool_,
            "count": np.int64,
        }
        return library.core.DatasetInfo(
            builder=self, features=library.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for n in range(count):
            start = f"\n\nHuman: {n}é\n\nAssistant:"
            yield (
                n,
                {
                    "chosen": start + " yes",
                    "rejected": start + " no",
                    "turns": [{"speaker": "Human"}, {"speaker": "Assistant"}],
                    "score": 0.5,
                    "safe": True,
                    "count": n,
                },
            )


@pytest.fixture
def prepared(tmp_path, capfd):
    library.disable_progress_bar()
    Pairs(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    capfd.readouterr()
    return tmp_path


def test_a_prepared_folder_is_read_by_its_name(prepared):
    source = tfds.load("transcripts", directory=prepared)
    assert source.schema == "preference" and len(source) == 5
    assert source[3] == {
        "prompt": "\n\nHuman: 3é\n\nAssistant:",
        "chosen": " yes",
        "rejected": " no",
        "turns": {"speaker": ["Human", "Assistant"]},
        "score": 0.5,
        "safe": True,
        "count": 3,
    }
    assert source.place(3) == "transcripts/1.2.0, train, record 3"
    half = tfds.load("transcripts", "train[60%:]", directory=prepared)
    assert [half[n]["count"] for n in range(len(half))] == [3, 4]


def test_columns_are_mapped_and_checked(prepared):
    source = tfds.load("transcripts", columns={"text": "chosen"}, schema="text", directory=prepared)
    assert source[1]["text"] == "\n\nHuman: 1é\n\nAssistant: yes"
    with pytest.raises(ValueError, match="no column 'question' to make 'prompt' of, only 'chosen'"):
        tfds.load("transcripts", columns={"prompt": "question"}, directory=prepared)
    columns = {"prompt": lambda record: "a" if record["count"] < 3 else ""}
    source = tfds.load("transcripts", columns=columns, schema="prompt", directory=prepared)
    with pytest.raises(ValueError, match=r"^transcripts/1.2.0, train, record 4: prompt is empty$"):
        source[4]


def test_gsm8k(tmp_path, monkeypatch, capfd):
    """Its own builder, with its downloads replaced by files of the same form."""

    def fetch(self, urls):
        path = tmp_path / "gsm8k.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in QUESTIONS))
        return dict.fromkeys(urls, path)

    monkeypatch.setattr(library.download.DownloadManager, "download_and_extract", fetch)
    columns = {
        "prompt": lambda record: f"Question: {record['question']}\nAnswer:",
        "completion": "answer",
    }
    source = tfds.load("gsm8k", "test", columns, directory=tmp_path / "data", download=True)
    found = sorted((source[n] for n in range(len(source))), key=lambda record: record["question"])
    assert source.schema == "completion" and len(found) == 7
    for record, expected in zip(found, QUESTIONS, strict=True):
        assert record["prompt"] == f"Question: {expected['question']}\nAnswer:"
        assert record["completion"] == record["answer"] == expected["answer"]
        assert record["short_answer"] == expected["answer"].split("#### ")[1]
    assert len(tfds.load("gsm8k", directory=tmp_path / "data")) == 7
    assert "tensorflow" not in sys.modules


def test_what_is_not_prepared_is_not_fetched_unasked(tmp_path, capfd):
    with pytest.raises(FileNotFoundError) as caught:
        tfds.load("gsm8k", directory=tmp_path)
    where = re.escape(str(tmp_path / "gsm8k"))
    assert re.fullmatch(
        f"gsm8k is not prepared in {where}.*: pass download=True, .*", str(caught.value)
    )
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_a_failed_download_is_one_line(tmp_path, monkeypatch, capfd):
    def fetch(self, urls):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(library.download.DownloadManager, "download_and_extract", fetch)
    with pytest.raises(FileNotFoundError) as caught:
        tfds.load("gsm8k", directory=tmp_path, download=True)
    assert str(caught.value).endswith("could not be downloaded: ConnectionError: no route to host")
    assert not (tmp_path / "gsm8k" / "1.0.0").exists()


@pytest.mark.parametrize(
    ("name", "split", "reason"),
    [
        ("no_such_data", "train", "no_such_data: DatasetNotFoundError: .*no_such_data.*"),
        ("transcripts", "dev", "transcripts/1.2.0, dev: there is no such split, only train, test"),
        ("transcripts", "train[5:", r"transcripts/1.2.0, train\[5:: ValueError: .*"),
        ("transcripts", "train[:0]", r"transcripts/1.2.0, train\[:0\]: .*"),
    ],
)
def test_unknown_names_and_splits_are_one_line(prepared, capfd, name, split, reason):
    with pytest.raises(ValueError) as caught:
        tfds.load(name, split, directory=prepared)
    assert re.fullmatch(reason, str(caught.value))


def test_files_without_random_access_are_refused(prepared):
    path = prepared / "transcripts" / "1.2.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="prepared as tfrecord, which has no random access"):
        tfds.load("transcripts", directory=prepared)


def test_tensorflow_datasets_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jrl\[data\]'"):
        tfds.library()
