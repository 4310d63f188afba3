"""Checks of the files of policy, reference and critic: the right head, and one vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from areal_x.api.check_values import bad_value
from areal_x.api.config import ExperimentConfig
from areal_x.api.reward_model_checks import local_folder

__all__ = ["check_model_files", "check_model_folder"]

_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
_VOCABULARY = "vocab_size"


def check_model_files(config: ExperimentConfig) -> None:
    """Refuse a policy or reference that writes no text, and a reference or critic that reads other tokens.

    Models of the hub are looked at when they are loaded.

    Raises:
        ConfigError: names the key, its folder and what is wrong.
    """
    policy = None if config.model.path is None else check_model_folder("model.path", config.model.path)
    if policy is not None:
        _check_head("model.path", policy)
    for key, path, is_policy in (
        ("reference.path", config.reference.path if config.uses_reference else None, True),
        ("critic.path", config.critic.path if config.uses_critic else None, False),
    ):
        folder = None if path is None else check_model_folder(key, path)
        if folder is None:
            continue
        if is_policy:
            _check_head(key, folder)
        if policy is not None:
            _check_vocabulary(key, folder, policy)


def check_model_folder(key: str, path: str) -> Path | None:
    """The folder of a local model; None: it is on the hub.

    Raises:
        ConfigError: there is no such folder, or no model in it.
    """
    folder = local_folder(path)
    if folder is None:
        return None
    if folder.is_file():
        raise bad_value(key, path, "is a file; name the folder that holds config.json")
    if not folder.is_dir():
        fix = "no such folder; make a small model with areal-x init-model, or write a hub name as organisation/name"
        raise bad_value(key, path, fix)
    if not (folder / "config.json").is_file():
        raise bad_value(key, path, "the folder has no config.json, so it is not a model in Hugging Face format")
    return folder


def _check_head(key: str, folder: Path) -> None:
    config = _read(key, folder, "config.json")
    for architecture in config.get("architectures") or []:
        # Code of a model's own may call what writes by any name.
        is_headless = architecture.endswith("Model") and "auto_map" not in config
        has_no_head = is_headless and not architecture.endswith("LMHeadModel")
        if architecture.endswith(_OTHER_HEADS) or has_no_head:
            what = "a policy writes text: name a causal language model (...ForCausalLM)"
            raise bad_value(key, folder, f"its architecture is {architecture}, which has no head for that; {what}")


def _check_vocabulary(key: str, folder: Path, policy: Path) -> None:
    """Both give the same ids to the same texts, as far as their files say so."""
    mine, theirs = (_vocabulary_size(where, path) for where, path in ((key, folder), ("model.path", policy)))
    if mine is not None and theirs is not None and mine != theirs:
        fix = f"it has {mine} tokens and the policy ({policy}) has {theirs}; name a model of the same tokenizer"
        raise bad_value(key, folder, fix)
    files = [path / "tokenizer.json" for path in (folder, policy)]
    if not all(file.is_file() for file in files) or files[0].read_bytes() == files[1].read_bytes():
        return
    mine_ids, policy_ids = (_token_ids(_read(key, file.parent, file.name)) for file in files)
    different = next((text for text, token in policy_ids.items() if mine_ids.get(text) != token), None)
    if different is not None:
        found = mine_ids.get(different, "not there")
        fix = f"its token {different!r} is {found}, and {policy_ids[different]} in the policy ({policy})"
        raise bad_value(key, folder, f"{fix}; name a model of the same tokenizer")


def _vocabulary_size(key: str, folder: Path) -> int | None:
    config = _read(key, folder, "config.json")
    nested = config.get("text_config")
    size = (nested if isinstance(nested, dict) else config).get(_VOCABULARY)
    return size if isinstance(size, int) else None


def _token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Ids by text; empty where the vocabulary is no table of ids."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    return ids | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}


def _read(key: str, folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad_value(key, folder, f"{name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise bad_value(key, folder, f"{name} is no JSON object")
    return found
