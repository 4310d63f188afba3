"""Scores equal transformers', those of a model that stays, and those of several ranks; refusals at the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scoring_models import CLASSES, TEXTS, files_of, make_reward_model, plain_scores, renderer_of, scorer_of

from areal_x.api.errors import ConfigError, EngineError
from areal_x.engine.ranks.rank_context import RankContext
from areal_x.engine.reward_model.conversations import Conversation
from areal_x.engine.reward_model.scoring_batch import ScoringBatch, aggregate, join_conversations, join_scores
from areal_x.engine.train.weights_home import MappedWeights, PinnedWeights


@pytest.fixture(scope="module", params=["sequence", "token"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return make_reward_model(tmp_path_factory.mktemp("models"), request.param), request.param


def conversations_of(path: Path, head: str) -> list[Conversation]:
    changes = {"step_separator": "\n\n"} if head == "token" else {}
    renderer = renderer_of(path, **changes)
    pairs = [(TEXTS[1], TEXTS[0]), (TEXTS[1], "It is four."), ("five", ""), (TEXTS[1], TEXTS[0] * 5), ("so", "\n\nan")]
    return [renderer.render(*pair) for pair in pairs]


def batch_of(path: Path, head: str) -> ScoringBatch:
    return join_conversations(conversations_of(path, head), [0, 0, 1, 0, 2])


def test_scores_are_those_of_transformers(model: tuple[Path, str]) -> None:
    path, head = model
    scores = join_scores(batch_of(path, head), [scorer_of(path, micro_batch_tokens=64).score(batch_of(path, head))])
    for conversation, found in zip(conversations_of(path, head), scores, strict=True):
        assert found == pytest.approx(plain_scores(path, head, conversation), rel=1e-4, abs=1e-5)
    assert len({round(score, 4) for found in scores for score in found}) > 3


def test_offloaded_scores_equal_resident_ones_bit_by_bit(model: tuple[Path, str]) -> None:
    path, head = model
    batch, offloaded, kept = batch_of(path, head), scorer_of(path), scorer_of(path, offload=False)
    expected = kept.score(batch)
    for _ in range(3):
        offloaded.fetch()
        found = offloaded.score(batch)
        assert found.values.tobytes() == expected.values.tobytes()
        assert all(parameter.is_meta for parameter in offloaded.model.parameters())
    assert not any(parameter.is_meta for parameter in kept.model.parameters())


def test_two_ranks_share_a_batch_and_give_the_same_scores(model: tuple[Path, str]) -> None:
    path, head = model
    batch = batch_of(path, head)
    alone = join_scores(batch, [scorer_of(path).score(batch)])
    parts = [scorer_of(path, RankContext(rank, 2)).score(batch) for rank in range(2)]
    assert sorted(np.concatenate([part.index for part in parts]).tolist()) == list(range(len(batch.positions)))
    assert all(len(part.index) for part in parts)
    for one, both in zip(alone, join_scores(batch, parts), strict=True):
        assert both == pytest.approx(one, abs=1e-5)


def test_more_ranks_than_conversations_leave_some_idle(model: tuple[Path, str]) -> None:
    path, head = model
    batch = join_conversations(conversations_of(path, head)[:1], [0])
    parts = [scorer_of(path, RankContext(rank, 3)).score(batch) for rank in range(3)]
    assert sum(len(part.index) == 0 for part in parts) == 2
    assert np.isfinite(join_scores(batch, parts)[0]).all()


def test_weights_leave_also_when_scoring_fails(model: tuple[Path, str]) -> None:
    path, head = model
    scorer = scorer_of(path)
    scorer.fetch()
    batch = batch_of(path, head)
    batch.input_ids[0] = 10_000
    with pytest.raises(IndexError):
        scorer.score(batch)
    assert all(parameter.is_meta for parameter in scorer.model.parameters())


def test_a_deadline_ends_scoring_between_two_passes(model: tuple[Path, str]) -> None:
    path, head = model
    scorer = scorer_of(path, timeout_seconds=1e-6, micro_batch_tokens=8)
    with pytest.raises(
        EngineError, match=r"reward_model: scoring a batch took longer than reward_model\.timeout_seconds"
    ):
        scorer.score(batch_of(path, head))
    assert all(parameter.is_meta for parameter in scorer.model.parameters())


def test_prefixes_of_a_group_are_computed_once(tmp_path: Path) -> None:
    path = make_reward_model(tmp_path)
    renderer = renderer_of(path)
    same = [renderer.render(TEXTS[0] * 3, answer) for answer in ("four", "five", "two", "so")]
    scorer = scorer_of(path)
    shared = scorer.score(join_conversations(same, [7, 7, 7, 7])).num_tokens
    apart = scorer.score(join_conversations(same, [1, 2, 3, 4])).num_tokens
    assert apart == sum(len(one.ids) for one in same) and shared < apart / 2


def test_another_type_of_numbers_in_the_file_is_cast(tmp_path: Path) -> None:
    path = make_reward_model(tmp_path)
    batch = batch_of(path, "sequence")
    exact = join_scores(batch, [scorer_of(path).score(batch)])
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(path / "model.safetensors").items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    cast, kept = scorer_of(path), scorer_of(path, offload=False)
    found = cast.score(batch)
    assert found.values.tobytes() == kept.score(batch).values.tobytes()
    assert join_scores(batch, [found]) != exact
    assert np.ravel(join_scores(batch, [found])) == pytest.approx(np.ravel(exact), abs=0.3)


def test_bfloat16_scores_are_near(model: tuple[Path, str]) -> None:
    path, head = model
    batch = batch_of(path, head)
    exact, rough = (
        np.concatenate(join_scores(batch, [scorer_of(path, dtype=d).score(batch)])) for d in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - rough).max() < 0.2 * max(1.0, np.abs(exact).max())


def test_a_pinned_block_gives_back_the_same_weights(tmp_path: Path) -> None:
    """Without a GPU the block is plain memory, and the layout is the same."""
    path = make_reward_model(tmp_path)
    model = CLASSES["sequence"].from_pretrained(path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    home = PinnedWeights(model, torch.device("cpu"))
    for _ in range(2):
        assert all(parameter.is_meta for parameter in model.parameters())
        home.fetch()
        home.wait()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        home.release()
    assert home.num_bytes >= 4 * sum(value.numel() for value in before.values())


def test_files_that_call_a_weight_otherwise_cannot_be_mapped(tmp_path: Path) -> None:
    path = make_reward_model(tmp_path)
    model = CLASSES["sequence"].from_pretrained(path)
    weights = load_file(path / "model.safetensors")
    weights["other.norm"] = weights.pop("model.norm.weight")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"do not name model\.norm\.weight.*offload=false"):
        MappedWeights(model, files_of(path).weights, torch.float32)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    path = make_reward_model(tmp_path)
    weights = load_file(path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights of the model: model\.norm\.weight"):
        scorer_of(path)


@pytest.mark.parametrize(("how", "expected"), [("last", 3.0), ("mean", 2.0), ("min", 1.0), ("sum", 6.0)])
def test_scores_of_steps_are_joined(how: str, expected: float) -> None:
    assert aggregate([2.0, 1.0, 3.0], how) == expected
    assert how == "last" or np.isnan(aggregate([2.0, float("nan"), 3.0], how))
