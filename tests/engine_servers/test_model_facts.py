"""What a model's files say of it, and what cannot be served."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from areal_x.api.errors import ConfigError
from areal_x.engine.init_model import init_model
from areal_x.engine.servers.model_facts import check_servable, read_model_facts


def change_json(path: Path, *dropped: str, **changes: Any) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps({key: found[key] for key in found if key not in dropped} | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_model(tmp_path_factory.mktemp("saved"), tokenizer="characters", num_layers=2, max_length=512)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_facts_are_those_of_the_loaded_model(saved: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = read_model_facts(str(saved))
    loaded = AutoModelForCausalLM.from_pretrained(saved)
    assert facts.vocab_size == loaded.config.vocab_size and facts.head_dim == 32
    assert facts.ties_embeddings and facts.max_length == 512 and facts.architecture == "Qwen3ForCausalLM"
    assert facts.eos_ids == (AutoTokenizer.from_pretrained(saved).eos_token_id,)
    assert facts.num_bytes == sum(4 * parameter.numel() for parameter in loaded.parameters())


def test_a_model_that_does_not_tie_its_embeddings(tmp_path: Path) -> None:
    path = init_model(tmp_path, tokenizer="characters", num_layers=1, tie_word_embeddings=False)
    assert not read_model_facts(str(path)).ties_embeddings


def test_no_torch_is_imported(saved: Path) -> None:
    code = (
        "import sys; from areal_x.engine.servers.model_facts import read_model_facts;"
        "read_model_facts(sys.argv[1]); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_the_head_size_is_derived_where_it_is_not_named(model: Path) -> None:
    change_json(model / "config.json", "head_dim")
    assert read_model_facts(str(model)).head_dim == 128 // 4


def test_names_of_other_models_and_defaults_of_their_classes(tmp_path: Path) -> None:
    """GPT-2 calls its sizes otherwise; what its file leaves out is the default of its class."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=64, n_layer=1, n_head=2, n_positions=77)).save_pretrained(tmp_path)
    facts = read_model_facts(str(tmp_path))
    assert (facts.vocab_size, facts.head_dim, facts.max_length, facts.ties_embeddings) == (99, 32, 77, True)
    change_json(tmp_path / "config.json", "tie_word_embeddings", "n_positions")
    assert read_model_facts(str(tmp_path)) == replace(facts, max_length=1024)


def test_sizes_of_a_language_model_inside_another(model: Path) -> None:
    inner = json.loads((model / "config.json").read_text())
    outer = {"model_type": "wrapped", "architectures": ["WrappedModel"], "text_config": inner, "eos_token_id": [3]}
    (model / "config.json").write_text(json.dumps(outer))
    facts = read_model_facts(str(model))
    assert facts.head_dim == 32 and facts.architecture == "WrappedModel" and set(facts.eos_ids) == {0, 3}


def test_every_end_of_sequence_id_counts(model: Path) -> None:
    change_json(model / "generation_config.json", eos_token_id=[5, 7])
    change_json(model / "config.json", eos_token_id=2)
    assert read_model_facts(str(model)).eos_ids == (0, 2, 5, 7)


def test_weights_in_several_files(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    policy = Qwen3ForCausalLM(Qwen3Config(vocab_size=500, intermediate_size=64, head_dim=32, **sizes))
    policy.save_pretrained(tmp_path, max_shard_size="100KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    stored = {id(parameter): parameter for parameter in policy.parameters()}
    assert read_model_facts(str(tmp_path)).num_bytes == sum(4 * p.numel() for p in stored.values())
    files[-1].unlink()
    with pytest.raises(ConfigError, match=rf"names {files[-1].name}, which is not there"):
        read_model_facts(str(tmp_path))


def test_weights_of_the_older_format(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(bytes(1000))
    assert read_model_facts(str(model)).num_bytes == 1000


def test_a_folder_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=rf"model\.path={model} holds no weights .*save_pretrained"):
        read_model_facts(str(model))


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_weights_cut_short(model: Path, left: int) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:left])
    with pytest.raises(ConfigError, match=r"model\.safetensors is (no safetensors file|cut short)"):
        read_model_facts(str(model))


def test_a_pointer_in_place_of_weights(model: Path) -> None:
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(ConfigError, match=r"is (no safetensors file|cut short).*again"):
        read_model_facts(str(model))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"model_type": "qwen3"'])
def test_a_configuration_that_cannot_be_read(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json .*again"):
        read_model_facts(str(model))


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, "many", True])
def test_impossible_sizes(model: Path, name: str, value: Any) -> None:
    change_json(model / "config.json", **{name: value})
    with pytest.raises(ConfigError, match=rf"no valid {name}"):
        read_model_facts(str(model))


def test_a_model_of_no_known_type(model: Path) -> None:
    change_json(model / "config.json", "vocab_size", model_type="no-such-type")
    with pytest.raises(ConfigError, match=r"is no known model: .*no-such-type"):
        read_model_facts(str(model))


def test_no_configuration_and_no_folder(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read_model_facts(str(model))
    for path in (str(model / "nothing"), str(model / "model.safetensors"), "./nothing", "a/b/c"):
        with pytest.raises(ConfigError, match=r"no such folder"):
            read_model_facts(path)


def test_a_hub_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"model\.path=no such model is neither"):
        read_model_facts("no such model")


def test_head_sizes_of_vllms_kernels_for_a_cpu(saved: Path) -> None:
    facts = read_model_facts(str(saved))
    for size in (32, 64, 128, 256):
        check_servable(replace(facts, head_dim=size), "vllm", on_cpu=True)
    for size in (8, 16, 40, 72, 384):
        wrong = replace(facts, head_dim=size)
        with pytest.raises(ConfigError, match=rf"head_dim={size}, and vLLM on a CPU computes only 32, .*model\.init"):
            check_servable(wrong, "vllm", on_cpu=True)
        check_servable(wrong, "vllm", on_cpu=False)
        check_servable(wrong, "sglang", on_cpu=True)
