"""``areal-x eval`` against a fake endpoint: no model, no tokenizer, one command."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import KEY, FakeEndpoint, completion, refusal, running

from areal_x.cli import main

DATA = ["name=sums", "data.kwargs.num_items=64", "evaluation.limit=8", "reward.num_workers=1"]


def adds(body: dict[str, Any]) -> dict[str, Any]:
    """Answers a sum, in plain text or in a chat."""
    text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    first, second = map(int, re.findall(r"\d+", text)[-2:])
    return completion(str(first + second), chat="messages" in body)


async def evaluate(folder: Path, endpoint: FakeEndpoint, *changes: str, key: str | None = KEY) -> tuple[int, str, str]:
    (folder / "exp.yaml").write_text("data: {path: arithmetic}\n")
    async with running(endpoint):
        command = [sys.executable, "-m", "areal_x.cli", "eval", "exp.yaml", "rollout=openai", *DATA, *changes]
        environment = os.environ | ({} if key is None else {"FAKE_KEY": key})
        process = await asyncio.create_subprocess_exec(
            *command,
            f"rollout.base_urls=[{endpoint.base_url}]",
            "rollout.server.api_key_env=FAKE_KEY",
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            stdout, stderr = await asyncio.wait_for(process.communicate(), 500)
        finally:
            if process.returncode is None:
                process.kill()
    assert process.returncode is not None
    return process.returncode, stdout.decode(), stderr.decode()


@pytest.mark.parametrize("chat", [True, False])
async def test_an_endpoint_is_evaluated(tmp_path: Path, chat: bool) -> None:
    endpoint = FakeEndpoint(adds)
    status, stdout, stderr = await evaluate(tmp_path, endpoint, f"data.chat_template={str(chat).lower()}")
    assert status == 0, stderr
    assert re.search(r"^  accuracy +1\.0000$", stdout, re.MULTILINE)
    assert len(endpoint.bodies) == 8 and {body["model"] for body in endpoint.bodies} == {"m"}
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert written and not [path for path in written if KEY.encode() in path.read_bytes()]
    rows = [json.loads(line) for line in (tmp_path / "runs" / "sums" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["eval/arithmetic/num_samples"] == 8


async def test_a_wrong_key_ends_the_command_with_one_line(tmp_path: Path) -> None:
    status, _, stderr = await evaluate(tmp_path, FakeEndpoint(adds), key="another-key-0123")
    assert status == 1 and "another-key-0123" not in stderr
    assert re.fullmatch(r"areal-x: error: http://\S+ answered 401: .*; check the key in .*\n", stderr)


async def test_a_model_that_is_not_there_ends_the_command_with_one_line(tmp_path: Path) -> None:
    endpoint = FakeEndpoint(lambda body: refusal(404, f"no model {body['model']}"))
    status, _, stderr = await evaluate(tmp_path, endpoint, "rollout.server.model_name=larger")
    assert status == 1 and stderr.count("\n") == 1
    assert "no model larger; check rollout.server.model_name" in stderr


def test_a_key_that_is_not_set_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)
    changes = ["rollout=openai", "rollout.server.api_key_env=FAKE_KEY"]
    assert main(["eval", "--config-name", "quickstart", *changes]) == 2
    assert "rollout.server.api_key_env=FAKE_KEY: this environment variable is not set" in capsys.readouterr().err


def test_training_on_an_endpoint_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config-name", "quickstart", "rollout=openai"]) == 2
    assert "rollout.engine=openai: is for areal-x eval" in capsys.readouterr().err
