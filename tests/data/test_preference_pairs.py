"""Preference pairs: the shapes that data sets have, what is held out, and what each mistake is told as."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import DataError
from areal_x.rollout.preferences import check_first_pair, load_preferences

GOOD = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
USER, RIGHT, WRONG = (
    {"role": role, "content": text} for role, text in (("user", "2+2?"), ("assistant", "4"), ("assistant", "5"))
)


def experiment(path: Path, **changes: Any) -> ExperimentConfig:
    config = ExperimentConfig(name="test")
    for key, value in {"path": str(path), **changes}.items():
        setattr(config.preferences, key, value)
    return config


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_kind_of_file_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}+1=", "chosen": str(number + 1), "rejected": "x"} for number in range(3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    with (tmp_path / "pairs.csv").open("w") as file:
        writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        writer.writeheader()
        writer.writerows(rows)
    held_out = write(tmp_path / "held_out.jsonl", GOOD)
    for path in (write(tmp_path / "pairs.jsonl", *rows), tmp_path / "pairs.parquet", tmp_path / "pairs.csv"):
        read = load_preferences(experiment(path, eval_path=str(held_out)))
        assert [(pair.prompt, pair.chosen, pair.rejected) for pair in read.train] == [
            tuple(row.values()) for row in rows
        ]
        assert [pair.place for pair in read.held_out] == [f"{held_out}:1"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]},
        {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        {"prompt": "2+2?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
        {"prompt": [USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG], "messages": []},
    ],
)
def test_messages_and_whole_conversations_are_the_same_pair(row: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", row)
    pair = load_preferences(experiment(path, eval_path=str(path))).train[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER], [RIGHT], [WRONG])


def test_conversations_share_as_many_messages_as_are_equal(tmp_path: Path) -> None:
    more = {"role": "user", "content": "sure?"}
    path = write(tmp_path / "p.jsonl", {"chosen": [USER, RIGHT, more, RIGHT], "rejected": [USER, RIGHT, more, WRONG]})
    pair = load_preferences(experiment(path, eval_path=str(path))).train[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ([USER, RIGHT, more], [RIGHT], [WRONG])


def test_conversations_as_plain_text_need_no_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"chosen": "Human: 2+2?\nAssistant: 4", "rejected": "Human: 2+2?\nAssistant: 5"})
    assert load_preferences(experiment(path, eval_path=str(path), chat_template=False)).train[0].prompt == ""
    with pytest.raises(DataError, match="no column 'prompt'"):
        load_preferences(experiment(path, eval_path=str(path)))


def test_pairs_that_say_nothing_are_left_out_and_counted(tmp_path: Path) -> None:
    same, empty = GOOD | {"rejected": "4"}, GOOD | {"rejected": " \n"}
    blank = {"chosen": [USER, RIGHT], "rejected": [USER, WRONG | {"content": ""}]}
    path = write(tmp_path / "pairs.jsonl", GOOD, same, same, empty, blank)
    read = load_preferences(experiment(path, eval_path=str(write(tmp_path / "held_out.jsonl", GOOD))))
    assert len(read.train) == 1 and read.left_out == {"equal": 2, "empty": 2}
    with pytest.raises(DataError, match=r"holds no pair to train on \(left out: 1 equal\)"):
        load_preferences(experiment(write(tmp_path / "same.jsonl", same)))


def test_what_is_held_out(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{number}+1=", "chosen": "right", "rejected": f"{kind}"} for number in range(60) for kind in "ab"
    ]
    path = write(tmp_path / "train.jsonl", *rows)
    read = load_preferences(experiment(path))
    held_out = {str(pair.prompt) for pair in read.held_out}
    assert (len(read.train), len(read.held_out)) == (114, 6)
    assert len(held_out) == 3 and not held_out & {str(pair.prompt) for pair in read.train}
    again = load_preferences(experiment(path))
    assert again == read
    write(tmp_path / "test.jsonl", GOOD, GOOD)
    beside = load_preferences(experiment(path))
    assert (len(beside.train), len(beside.held_out)) == (120, 2)
    with pytest.raises(DataError, match="all pairs have one prompt"):
        load_preferences(experiment(write(tmp_path / "one.jsonl", GOOD, GOOD | {"rejected": "6"})))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "a", "better": "b", "rejected": "c"},
            "no column 'chosen', only prompt, better, rejected; set pref",
        ),
        ({"chosen": "b", "rejected": "c"}, "no column 'prompt', only chosen, rejected; set preferences.prompt_key"),
        (GOOD | {"prompt": " "}, "the prompt .* is empty"),
        (GOOD | {"chosen": None}, "column 'chosen' is null; expected text or a list of messages"),
        (GOOD | {"chosen": 4}, "column 'chosen' is of type int;"),
        (GOOD | {"rejected": []}, "column 'rejected' is an empty list"),
        (GOOD | {"rejected": [{"role": "assistant"}]}, "message 1 of column 'rejected' is not an object with role"),
        (GOOD | {"rejected": [WRONG]}, "are text and messages; make both the same"),
        ({"chosen": [USER, RIGHT], "rejected": [USER]}, "ends with a message of 'user'"),
        ({"chosen": [USER, RIGHT], "rejected": [USER | {"content": "3+3?"}, WRONG]}, "begin with different messages"),
    ],
)
def test_a_bad_line_is_named(row: Any, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", GOOD, row)
    with pytest.raises(DataError, match=rf"pairs\.jsonl:2: .*{expected}"):
        load_preferences(experiment(path))
    check_first_pair(experiment(path))
    with pytest.raises(DataError, match=expected):
        check_first_pair(experiment(write(path, row, GOOD)))


def test_messages_need_a_template(tmp_path: Path) -> None:
    answers = write(tmp_path / "a.jsonl", {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]})
    prompts = write(tmp_path / "p.jsonl", GOOD | {"prompt": [USER]})
    for path in (answers, prompts):
        with pytest.raises(DataError, match=r"preferences\.chat_template=true"):
            load_preferences(experiment(path, chat_template=False))
