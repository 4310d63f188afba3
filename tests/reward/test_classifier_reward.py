"""A classifier as a quality reward: a real PyTorch model in the reward workers, loaded once for all of them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.process_pool import ProcessPool

EXAMPLE = Path(__file__).parents[2] / "examples" / "classifier_reward.py"
COUNTING_MODULE = """
import os, signal, sys
with open(os.environ["IMPORTS_FILE"], "a") as file:
    file.write(f"{os.environ.get('AREAL_X_DRIVER') == str(os.getpid())}\\n")
sys.path.insert(0, os.environ["EXAMPLES"])
import torch
from classifier_reward import MODEL, quality
worker = None

def score(completions):
    global worker
    worker = worker or os.urandom(8).hex()
    if completions == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    big = torch.randn(300, 300) @ torch.randn(300, 300)
    threads = len(os.listdir("/proc/self/task"))
    return {"reward": quality(completions), "worker": worker, "threads": threads, "finite": float(big.isfinite().all())}
"""
TEXTS = ["48 + 24 = 72, so she sold 72 clips.", "um well whatever lol idk", "", "so " * 3000, "\0\ud800 \u202eabc"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the example itself."""
    path = tmp_path_factory.mktemp("classifier") / "quality.pt"
    environment = os.environ | {"QUALITY_CLASSIFIER": str(path)}
    done = subprocess.run([sys.executable, str(EXAMPLE)], env=environment, capture_output=True, text=True, check=True)
    assert f"wrote {path}" in done.stdout and "she sold 72 clips" in done.stdout
    return path


@pytest.fixture
def counting(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The path of a reward around the example, and the file in which each import of its module leaves a line."""
    (tmp_path / "counting_classifier.py").write_text(COUNTING_MODULE)
    imports = tmp_path / "imports"
    variables = {"QUALITY_CLASSIFIER": weights, "IMPORTS_FILE": imports, "EXAMPLES": EXAMPLE.parent}
    for name, value in (variables | {"AREAL_X_DRIVER": os.getpid()}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield "counting_classifier:score", imports
    for name in ("counting_classifier", "classifier_reward"):
        sys.modules.pop(name, None)


async def test_it_is_loaded_once_for_all_workers(counting: tuple[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Once in the driver, which looks the function up, and once in the helper: not in the workers that are forks of it,
    and not in the one that takes a killed worker's place."""
    path, imports = counting
    caplog.set_level(logging.WARNING)
    async with ProcessPool(num_workers=4) as pool:
        reward = AsyncRewardWrapper(path, timeout_seconds=30.0, pool=pool)
        await reward.start()
        outcomes = await asyncio.gather(*(reward.outcome("p", TEXTS[n % 5]) for n in range(400)))
        assert {outcome.status for outcome in outcomes} == {"ok"}
        workers = {outcome.metadata["worker"] for outcome in outcomes}
        assert len(workers) == 4
        assert {outcome.parts["threads"] for outcome in outcomes} == {1.0}

        assert (await reward.outcome("p", "die")).status == "crash"
        again = await asyncio.gather(*(reward.outcome("p", TEXTS[n % 5]) for n in range(400)))
        assert {outcome.status for outcome in again} == {"ok"}
        assert {outcome.metadata["worker"] for outcome in again} - workers

        quality: Any = importlib.import_module("classifier_reward").quality
        expected = [quality(text) for text in TEXTS]
        assert [outcome.value for outcome in outcomes + again] == expected * 160
        assert len(set(expected)) >= 4
    assert sorted(imports.read_text().split()) == ["False", "True"]
    assert "started threads" not in caplog.text


async def test_the_example_tells_texts_apart(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUALITY_CLASSIFIER", str(weights))
    async with ProcessPool(num_workers=1) as pool:
        reward = AsyncRewardWrapper(f"{EXAMPLE}:quality", timeout_seconds=30.0, pool=pool)
        good, bad = [(await reward.outcome("p", text)).value for text in TEXTS[:2]]
        assert good is not None and bad is not None and good > 0.7 > 0.3 > bad


def test_missing_weights_are_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    environment = os.environ | {"QUALITY_CLASSIFIER": str(tmp_path / "none.pt"), "PYTHONPATH": str(EXAMPLE.parent)}
    command = [sys.executable, "-c", "import classifier_reward"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "FileNotFoundError" in done.stderr
    assert "none.pt is missing; make it with: python" in done.stderr
