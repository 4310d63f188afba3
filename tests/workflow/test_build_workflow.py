"""Workflows named in a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from areal_x.api.errors import ConfigError
from areal_x.workflow.build import build_workflow
from areal_x.workflow.multi_turn import MultiTurnWorkflow
from areal_x.workflow.rlvr import RLVRWorkflow

OWN = """
from areal_x.api.workflow_api import RolloutWorkflow
from areal_x.workflow.rlvr import RLVRWorkflow

class Own(RolloutWorkflow):
    def __init__(self, tokenizer, limit: int, note: str = ""):
        self.tokenizer, self.limit, self.note = tokenizer, limit, note
    async def arun_episode(self, engine, data):
        return None

class Inheriting(RLVRWorkflow):
    def __init__(self, extra=1, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra

class Abstract(RolloutWorkflow):
    pass

class Blocking(RolloutWorkflow):
    def arun_episode(self, engine, data):
        return None

class Other:
    pass
"""


async def reward(completions: str) -> float:
    return 0.0


@pytest.fixture
def available(chat_tokenizer: Any) -> dict[str, Any]:
    return {"reward_fn": reward, "tokenizer": chat_tokenizer, "sampling": None, "prompt_key": "question", "seed": 1}


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own_workflows.py").write_text(OWN)
    return str(tmp_path / "own_workflows.py")


@pytest.mark.parametrize("path", ["areal_x.workflow.rlvr:RLVRWorkflow", "areal_x.workflow.rlvr.RLVRWorkflow"])
def test_a_dotted_path_gets_what_its_constructor_takes(available: dict[str, Any], path: str) -> None:
    workflow = build_workflow(path, available, {"system_prompt": "Be brief."})
    assert isinstance(workflow, RLVRWorkflow)
    assert (workflow.prompt_key, workflow.renderer.system_prompt) == ("question", "Be brief.")


def test_kwargs_win_over_what_the_run_offers(available: dict[str, Any]) -> None:
    kwargs = {"prompt_key": "other", "max_turns": 4}
    workflow = build_workflow("areal_x.workflow.multi_turn:MultiTurnWorkflow", available, kwargs)
    assert isinstance(workflow, MultiTurnWorkflow)
    assert (workflow.prompt_key, workflow.max_turns) == ("other", 4)


def test_a_file_of_ones_own(available: dict[str, Any], own: str) -> None:
    workflow: Any = build_workflow(f"{own}:Own", available, {"limit": 3})
    assert (workflow.limit, workflow.tokenizer) == (3, available["tokenizer"])
    inheriting: Any = build_workflow(f"{own}:Inheriting", available, {"extra": 2, "chat_template": True})
    assert (inheriting.extra, inheriting.prompt_key) == (2, "question")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("Own", {}, r"Own needs workflow\.kwargs\.limit; the run itself offers: prompt_key, reward_fn"),
        ("Own", {"limt": 3}, r"workflow\.kwargs\.limt is not an argument of Own; did you mean 'limit'\?"),
        ("Inheriting", {"sampler": 3}, r"did you mean 'sampling'"),
        ("Abstract", {}, "lacks 'async def arun_episode"),
        ("Blocking", {}, "has to be 'async def'"),
        ("Other", {}, "is not a subclass of"),
        ("Missing", {}, "Missing"),
    ],
)
def test_what_does_not_fit_is_a_clear_error(
    available: dict[str, Any], own: str, name: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_workflow(f"{own}:{name}", available, kwargs)


def test_a_missing_file_or_module_is_named(available: dict[str, Any]) -> None:
    for path in ("no_such_file.py:Own", "no_such_module:Own"):
        with pytest.raises(ConfigError, match="no_such"):
            build_workflow(path, available, {})
