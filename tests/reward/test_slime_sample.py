"""The stand-in for slime's Sample: its fields, its methods, and the module that it is imported from."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_x.reward.adapters.slime_sample import Sample

tokens = st.lists(st.integers(0, 9), max_size=5)


@given(st.lists(st.tuples(tokens, st.booleans(), st.text(max_size=3)), max_size=5), st.integers(0, 3))
def test_appended_tokens_keep_everything_as_long_as_the_response(turns, length):
    sample = Sample(tokens=[7] * (2 + length), response_length=length)
    for ids, trainable, text in turns:
        log_probs = [-0.5] * len(ids) if trainable else None
        sample.append_response_tokens(None, tokens=ids, log_probs=log_probs, trainable=trainable, text=text)
    appended = [(token, trainable) for ids, trainable, _ in turns for token in ids]
    assert sample.tokens[2 + length :] == [token for token, _ in appended]
    assert sample.response_length == length + len(appended)
    assert sample.response == "".join(text for _, _, text in turns)
    if turns:
        assert sample.loss_mask == [1] * length + [int(trainable) for _, trainable in appended]
        assert sample.rollout_log_probs == [0.0] * length + [-0.5 * trainable for _, trainable in appended]
    assert sample.effective_response_length == length + sum(trainable for _, trainable in appended)


def test_appending_refuses_what_does_not_align():
    sample = Sample(response_length=2, loss_mask=[1])
    with pytest.raises(ValueError, match="loss_mask has 1 entries, the response 2 tokens"):
        sample.append_response_tokens(None, tokens=[1], log_probs=[0.0])
    with pytest.raises(ValueError, match="1 trainable tokens were appended without log_probs"):
        Sample().append_response_tokens(None, tokens=[1])
    with pytest.raises(ValueError, match="2 tokens were appended with 1 log_probs"):
        Sample().append_response_tokens(None, tokens=[1, 2], log_probs=[0.0])


@pytest.mark.parametrize(
    ("reason", "status"),
    [("length", Sample.Status.TRUNCATED), ("abort", Sample.Status.ABORTED), ("stop", Sample.Status.COMPLETED)],
)
def test_the_reason_to_finish_sets_the_status(reason, status):
    sample, info = Sample(), {"finish_reason": {"type": reason}}
    sample.append_response_tokens(None, tokens=[], meta_info=info)
    assert sample.status is Sample.Status.PENDING
    sample.append_response_tokens(None, tokens=[], meta_info=info, update_terminal_info=True)
    assert sample.status is status


def test_dicts_keep_everything():
    sample = Sample(prompt="Q?", label="4", status=Sample.Status.FAILED, reward={"score": 1.0}, metadata={"a": 1})
    sample.judge_notes = "kept"
    data = sample.to_dict()
    assert (data["status"], data["judge_notes"], data["label"]) == ("failed", "kept", "4")
    again = Sample.from_dict(data)
    assert again == sample and again.judge_notes == "kept" and again.status is Sample.Status.FAILED


def test_reward_values():
    assert Sample(reward=2.0).get_reward_value(SimpleNamespace(reward_key=None)) == 2.0
    assert Sample(reward={"score": 2.0}).get_reward_value(SimpleNamespace(reward_key="score")) == 2.0
    with pytest.raises(TypeError, match=r"reward_key is 'score', but the sample's reward is 2.0"):
        Sample(reward=2.0).get_reward_value(SimpleNamespace(reward_key="score"))


WITHOUT_SLIME = """
from areal_x.reward.adapters.slime_stand_in import provide_slime_types, sample_class
from areal_x.reward.adapters.slime_sample import Sample
assert sample_class() is Sample
provide_slime_types()
import slime.utils.types
from slime.utils.types import Sample as Theirs
assert Theirs is Sample is sample_class()
try:
    import slime.rollout.rm_hub
except ModuleNotFoundError as error:
    print(error)
"""

WITH_SLIME = """
from areal_x.reward.adapters.slime_stand_in import provide_slime_types, sample_class
provide_slime_types()
import sys
assert "slime" not in sys.modules
from slime.utils.types import Sample
assert sample_class() is Sample and Sample.__module__ == "slime.utils.types"
from areal_x.reward import get_reward_fn
result = get_reward_fn("slime:uses_slime.rm")("Q?", "A", [1], [2], answer="4")
print(result["reward"])
"""


def run(code: str, folder) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_slime_s_module_is_stood_in_for_where_slime_is_missing(tmp_path):
    assert run(WITHOUT_SLIME, tmp_path) == "No module named 'slime.rollout'"


def test_an_installed_slime_is_used_as_it_is(tmp_path):
    (tmp_path / "slime" / "utils").mkdir(parents=True)
    (tmp_path / "slime" / "utils" / "types.py").write_text(
        "import dataclasses, enum, typing\n"
        "class Status(enum.Enum):\n    COMPLETED = 'completed'\n    TRUNCATED = 'truncated'\n"
        "class Sample:\n    Status = Status\n    def __init__(self, **fields):\n        vars(self).update(fields)\n"
    )
    (tmp_path / "uses_slime.py").write_text(
        "from slime.utils.types import Sample\n"
        "def rm(args, sample):\n"
        "    assert type(sample) is Sample and sample.status is Sample.Status.COMPLETED\n"
        "    return {'reward': sample.tokens == [1, 2] and sample.label == '4'}\n"
    )
    assert run(WITH_SLIME, tmp_path) == "1.0"
