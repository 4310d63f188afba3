"""Reading files: every kind, and every way in which one is broken, named by file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from areal_x.api.config import DataConfig
from areal_x.api.errors import DataError
from areal_x.rollout.data_files import read_texts
from areal_x.rollout.dataset import Items, dataset_name, load_dataset_items

ROWS = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(6)]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(path: Path, **fields: Any) -> Items:
    return load_dataset_items(DataConfig(path=str(path), **fields))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines(tmp_path: Path) -> None:
    items = load(write(tmp_path, "sums.jsonl", lines(ROWS)))
    assert items.rows == ROWS and list(items) == ROWS and len(items) == 6 and items[2] == ROWS[2]
    assert items.name == "sums"


def test_marks_and_blank_lines_of_editors_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeff" + lines(ROWS).replace("\n", "\r\n") + "\n  \n"
    assert load(write(tmp_path, "x.jsonl", text)).rows == ROWS
    assert load(write(tmp_path, "y.jsonl", lines(ROWS).rstrip("\n"))).rows == ROWS


def test_json_list_and_json_lines_called_json(tmp_path: Path) -> None:
    assert load(write(tmp_path, "a.json", json.dumps(ROWS, indent=2))).rows == ROWS
    assert load(write(tmp_path, "b.json", lines(ROWS))).rows == ROWS


def test_csv_and_tsv(tmp_path: Path) -> None:
    text = 'prompt,answer\n"1, and\n2",3\n4,5\n'
    expected = [{"prompt": "1, and\n2", "answer": "3"}, {"prompt": "4", "answer": "5"}]
    assert load(write(tmp_path, "a.csv", "\ufeff" + text)).rows == expected
    assert load(write(tmp_path, "a.tsv", "prompt\tanswer\na\tb\n")).rows == [{"prompt": "a", "answer": "b"}]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [*ROWS[:2], {"prompt": "x", "answer": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").rows == rows


def test_chat_messages_are_prompts(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "hi"}], "answer": 3}
    assert load(write(tmp_path, "x.jsonl", lines([row]))).rows == [row]


def test_a_line_of_ten_megabytes(tmp_path: Path) -> None:
    row = {"prompt": "x" * 10_000_000, "answer": "y"}
    assert load(write(tmp_path, "x.jsonl", lines([ROWS[0], row, ROWS[1]]))).rows == [ROWS[0], row, ROWS[1]]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    text = lines(ROWS * 1000).splitlines(keepends=True)
    text[4999] = '{"prompt": "1+1=" "answer": "2"}\n'
    with pytest.raises(DataError, match=r"x\.jsonl:5000: not JSON: Expecting ',' delimiter \(column 19\)"):
        load(write(tmp_path, "x.jsonl", "".join(text)))


def test_a_file_that_was_cut_off_is_told_from_a_broken_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "x.jsonl", lines(ROWS)[:-5])
    assert load(path).rows == ROWS[:5]
    assert "x.jsonl:6: not JSON" in caplog.text and "ends in the middle of this line" in caplog.text


def test_lines_before_the_limit_are_enough(tmp_path: Path) -> None:
    assert load(write(tmp_path, "x.jsonl", lines(ROWS) + "broken"), limit=3).rows == ROWS[:3]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", "", "the file is empty"),
        ("x.jsonl", "\n\n", "holds no items"),
        ("x.jsonl", '{"prompt": "a"}\n[1]\n', "x.jsonl:2: expected an object of columns, found a list"),
        ("x.jsonl", '"a"\n', "x.jsonl:1: expected an object of columns, found a string"),
        ("x.jsonl", "null\n", "found null"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt"\n', "x.jsonl:2: not JSON"),
        ("x.jsonl", '{"prompt"\n{"prompt": "a"}\n', "x.jsonl:1: not JSON: Expecting ':' delimiter (column 10)"),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "x.jsonl:2: not UTF-8"),
        ("x.jsonl", '{"prompt": "a"}\n' + "[" * 100_000 + "\n", "x.jsonl:2: not usable JSON: nested too deeply"),
        ("x.jsonl", '{"prompt": "a", "n": ' + "1" * 5000 + "}\n", "x.jsonl:1: not usable JSON"),
        (
            "x.jsonl",
            '{"question": "a", "answer": 1}\n',
            "x.jsonl:1: no column 'prompt', only question, answer; set data.prompt_key",
        ),
        ("x.jsonl", '{"prompt": "a"}\n{"answer": 1}\n', "x.jsonl:2: no column 'prompt'"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": " \\n"}\n', "x.jsonl:2: the prompt (column 'prompt') is empty"),
        ("x.jsonl", '{"prompt": null}\n', "x.jsonl:1: the prompt (column 'prompt') is null"),
        ("x.jsonl", '{"prompt": 3}\n', "is a int"),
        ("x.jsonl", '{"prompt": []}\n', "holds no messages"),
        ("x.jsonl", '{"prompt": ["hi"]}\n', "message 1 of the prompt is not an object with role and content"),
        (
            "x.jsonl",
            '{"id": 1, "prompt": "a"}\n{"id": 2, "prompt": "b"}\n{"id": 1, "prompt": "c"}\n',
            "x.jsonl:3: id 1 is also",
        ),
        ("x.json", "3", "expected a list of objects"),
        ("x.json", '[{"prompt": "a"}, 3]', "x.json, entry 2: expected an object"),
        ("x.json", '[{"prompt": "a"},\n{"prompt" 3}]', "not JSON: Expecting ':' delimiter (line 2"),
        ("x.csv", "prompt,answer\na,b\nc\n", "x.csv:3: 1 fields, but the header names 2 columns"),
        ("x.csv", 'prompt\n"a\n', "not CSV"),
        ("x.csv", "prompt,prompt\na,b\n", "x.csv:1: a column's name stands twice"),
        ("x.csv", b"prompt\n\xff\n", "not UTF-8"),
        ("x.parquet", "not parquet at all", "not parquet"),
        ("x.txt", "hello", "unknown kind of file"),
    ],
)
def test_a_broken_file_is_named(name: str, content: str | bytes, expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write(tmp_path, name, content))
    assert expected in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nope.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path)


def test_a_column_of_fine_tuning_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl:2: no column 'completion', only prompt"):
        load_dataset_items(DataConfig(path=str(path)), columns=["completion"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_rows_or_a_clear_error(content: bytes, tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.json", "x.csv"):
        try:
            load(write(tmp_path, name, content))
        except DataError as error:
            assert str(tmp_path) in str(error)


def test_held_out_data_lies_beside_the_training_data(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", lines(ROWS))
    assert len(load_dataset_items(DataConfig(path=str(train)), "eval")) == 0
    write(tmp_path, "validation.jsonl", lines(ROWS[:3]))
    assert load_dataset_items(DataConfig(path=str(train), limit=1), "eval").rows == ROWS[:3]
    write(tmp_path, "test.jsonl", lines(ROWS[:2]))
    assert load_dataset_items(DataConfig(path=str(train)), "eval").rows == ROWS[:2]
    other = write(tmp_path, "other.jsonl", lines(ROWS[:1]))
    assert load_dataset_items(DataConfig(path=str(train), eval_path=str(other)), "eval").rows == ROWS[:1]
    assert len(load_dataset_items(DataConfig(path=str(other)), "eval")) == 0


def test_held_out_data_of_a_prefixed_name(tmp_path: Path) -> None:
    train = write(tmp_path, "sums_train.jsonl", lines(ROWS))
    write(tmp_path, "sums_test.jsonl", lines(ROWS[:2]))
    assert load_dataset_items(DataConfig(path=str(train)), "eval").rows == ROWS[:2]


def test_the_name_selects_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "train.jsonl").touch()
    monkeypatch.chdir(folder)
    expected = {
        "openai/gsm8k": "gsm8k",
        "train.jsonl": "gsm8k",
        str(folder / "train.jsonl"): "gsm8k",
        "data/sums.jsonl": "sums",
        "arithmetic": "arithmetic",
        "package.module:rows": "rows",
        "squad": "squad",
    }
    assert {path: dataset_name(DataConfig(path=path)) for path in expected} == expected
    assert dataset_name(DataConfig(path="x.jsonl", name="mine")) == "mine"


def test_the_hub_out_of_reach_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real call, told by the library's own switch not to ask the network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    huggingface = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(huggingface, "HF_HUB_OFFLINE", True)
    for split in ("train", "eval"):
        with pytest.raises(DataError, match=r"data\.path=openai/gsm8k: .*cannot be reached"):
            load_dataset_items(DataConfig(path="openai/gsm8k", subset="main"), split)


def test_a_data_set_folder_of_the_hub_format_is_loaded_through_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``datasets.load_dataset`` on a local repository takes the same way as one of the hub."""
    pytest.importorskip("datasets")
    from areal_x.rollout.hub import find_held_out_split, read_hub_rows

    repository = tmp_path / "sums"
    repository.mkdir()
    write(repository, "train.jsonl", lines(ROWS))
    write(repository, "test.jsonl", lines(ROWS[:2]))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = list(read_hub_rows(str(repository), None, "train"))
    assert [row for _, row in rows] == ROWS and rows[0][0].endswith("(train), row 1")
    assert find_held_out_split(str(repository), None) == "test"
    with pytest.raises(DataError, match=r"data\.split=nope"):
        list(read_hub_rows(str(repository), None, "nope"))


@pytest.mark.skipif("AREAL_X_GSM8K" not in os.environ, reason="AREAL_X_GSM8K names no folder of GSM8K")
def test_the_real_gsm8k() -> None:
    path = Path(os.environ["AREAL_X_GSM8K"]) / "train.jsonl"
    data = DataConfig(path=str(path), prompt_key="question", limit=7000)
    train, held_out = load_dataset_items(data), load_dataset_items(data, "eval")
    assert (len(train), len(held_out), train.name) == (7000, 1319, "gsm8k")
    assert all("####" in row["answer"] for row in train)


def test_texts_of_chosen_columns(tmp_path: Path) -> None:
    rows = [{"question": "a", "answer": "b", "level": 1, "chat": [{"role": "user", "content": "c"}]}]
    path = write(tmp_path, "x.jsonl", lines(rows))
    assert list(read_texts(path)) == ["a", "b", "user", "c"]
    assert list(read_texts(path, ["answer"])) == ["b"]
    with pytest.raises(DataError, match=r"x\.jsonl:1: has no column 'solution'; it has: question"):
        list(read_texts(path, ["solution"]))
