"""Composition: presets, a user's own file, overrides, sweeps, and the one line that each mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from areal_x.api.config import ExperimentConfig
from areal_x.api.errors import ConfigError
from areal_x.launch.compose import ConfigSource, compose_config, expand_sweep, parse_override, to_yaml
from areal_x.launch.schema import valid_keys

QUICKSTART = ConfigSource.named("quickstart")


def write(folder: Path, text: str, name: str = "exp.yaml") -> ConfigSource:
    (folder / name).write_text(text, encoding="utf-8")
    return ConfigSource.file(folder / name)


def test_a_shipped_config_is_a_typed_config() -> None:
    config = compose_config(QUICKSTART, ["seed=7", "train.learning_rate=1e-5", "rollout.sampling.stop=['\\n','#']"])
    assert isinstance(config, ExperimentConfig)
    assert (config.seed, config.train.learning_rate) == (7, 1e-5)
    assert config.rollout.sampling.stop == ["\\n", "#"]
    assert config.model.init is not None and type(config.model.init) is dict


def test_a_users_file_builds_on_shipped_presets(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        "defaults:\n  - quickstart\n  - override algorithm: reinforce\n  - _self_\n"
        "name: mine\ntrain:\n  batch_size: 64\n",
    )
    config = compose_config(source)
    assert config.name == "mine" and config.train.batch_size == 64
    assert config.algorithm.scale_by == "none"
    assert config.data.path == "arithmetic"


def test_a_users_file_needs_no_defaults(tmp_path: Path) -> None:
    config = compose_config(write(tmp_path, "name: mine\ndata: {path: x.jsonl}\n"))
    assert config.train == ExperimentConfig().train


def test_presets_beside_a_users_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("clip_low: 0.05\n")
    source = write(tmp_path, "defaults: [{algorithm: mine}, _self_]\nname: mine\ndata: {path: x}\n")
    assert compose_config(source).algorithm.clip_low == 0.05


def test_a_preset_can_be_chosen_where_the_file_names_none(tmp_path: Path) -> None:
    source = write(tmp_path, "name: mine\ndata: {path: x}\n")
    assert compose_config(source, ["algorithm=reinforce"]).algorithm.scale_by == "none"


def test_folders_with_odd_names_work(tmp_path: Path) -> None:
    folder = tmp_path / "my runs, 'new' \"x\" = [1]"
    folder.mkdir()
    assert compose_config(write(folder, "defaults: [quickstart, _self_]\nname: odd\n")).name == "odd"


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compose_config(QUICKSTART)
    assert list(tmp_path.iterdir()) == []
    assert Path.cwd() == tmp_path


def test_keys_of_free_form_sections_need_no_plus() -> None:
    config = compose_config(
        QUICKSTART, ["workflow.kwargs.max_turns=3", "data.kwargs.num_digits=1", "reward.kwargs.nested.deep=x"]
    )
    assert config.workflow.kwargs == {"max_turns": 3}
    assert config.data.kwargs["num_digits"] == 1
    assert config.reward.kwargs == {"nested": {"deep": "x"}}


def test_a_section_that_is_null_can_be_filled(tmp_path: Path) -> None:
    source = write(tmp_path, "name: mine\ndata: {path: x}\n")
    assert compose_config(source, ["model.init.hidden_size=8"]).model.init == {"hidden_size": 8}


@pytest.mark.parametrize(
    "value", ["a=b", "f(x", "runs/a b.jsonl", "x'y", "Qwen/Qwen2.5-1.5B-Instruct", "ü", "a:b", "^*!"]
)
def test_any_text_is_a_value(value: str) -> None:
    assert compose_config(QUICKSTART, [f"model.path={value}"]).model.path == value


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20))
def test_a_value_is_text_or_a_clear_error(value: str) -> None:
    try:
        parse_override(f"model.path={value}")
    except ConfigError as error:
        assert "\n" not in str(error)


def test_the_resolved_yaml_gives_the_same_config_again(tmp_path: Path) -> None:
    config = compose_config(QUICKSTART, ["seed=5", "workflow.kwargs.a=1"])
    assert compose_config(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.bach_size=3"], "unknown key 'train.bach_size'; did you mean train.batch_size?"),
        (["max_staleness=0"], "unknown key 'max_staleness'; did you mean rollout.max_staleness?"),
        (["+train.foo=3"], "unknown key 'train.foo'"),
        (["hydra.run.dir=x"], "unknown key 'hydra.run.dir'"),
        (["train.batch_size=abc"], "train.batch_size: 'abc' is not a whole number"),
        (["seed=1.5"], "seed: '1.5' is not a whole number"),
        (["overwrite=maybe"], "overwrite: 'maybe' is not true or false"),
        (["train.betas=[0.9,a]"], "train.betas[1]: 'a' is not a number"),
        (["train=null"], "train: null is not allowed"),
        (["data=x"], "data: expected a section"),
        (["algorithm=dappo"], "no preset 'dappo' of algorithm; did you mean dapo?"),
        (["train.batch_size"], "not an override: 'train.batch_size'; write key=value"),
        (["train.betas=[0.9"], "train.betas: cannot read the value '[0.9'"),
        (["seed=1,2"], "seed: several values ('seed=1,2'); add --multirun"),
        (["~train.batch_size"], "a key cannot be removed"),
        (["=3"], "not an override"),
        (["name=${nope}"], "name: Interpolation key 'nope' not found"),
    ],
)
def test_a_wrong_override_is_named(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(QUICKSTART, overrides)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: x\ntrain:\n  lerning_rate: 1\n",
            ":3: unknown key 'train.lerning_rate'; did you mean train.learning_rate?",
        ),
        ("name: x\ntrain:\n\n  batch_size: abc\n", ":4: train.batch_size: 'abc' is not a whole number"),
        ("data.path: x\n", ":1: 'data.path': a file nests its keys"),
        ("name: x\ntrain: 3\n", ":2: train: expected a section"),
        ("name: x\nname: y\n", ":2: 'name' stands here and on line 1"),
        ("a: [", "not YAML"),
        ("name: \tx: y:\n", "not YAML"),
        ("- 3\n", ":1: expected a mapping"),
        ("# a\ndefaults: [nope]\nname: x\n", "exp.yaml:2: no config 'nope'"),
        (
            "name: x\ndefaults:\n  - algorithm: grpoo\n",
            "exp.yaml:3: no preset 'grpoo' of algorithm; did you mean grpo?",
        ),
        ("defaults: [exp]\n", "its defaults name the file itself"),
        ("defaults: [./quickstart]\n", "exp.yaml: its defaults name a file with ./ before it"),
        ("defaults: 3\n", "defaults must be a list"),
        ("name: x\n", "data.path is not set; add data.path=VALUE"),
        ("", "data.path is not set"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(write(tmp_path, text))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_in_a_preset_names_the_preset(tmp_path: Path) -> None:
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("name: grpo\nclip_low: much\n")
    with pytest.raises(ConfigError, match=r"algorithm/mine\.yaml:2: algorithm\.clip_low: 'much' is not a number"):
        compose_config(write(tmp_path, "defaults: [{algorithm: mine}, _self_]\nname: x\ndata: {path: x}\n"))


def test_a_mistake_in_a_preset_of_several_sections_names_the_preset(tmp_path: Path) -> None:
    (tmp_path / "algorithm").mkdir()
    preset = tmp_path / "algorithm" / "mine.yaml"
    preset.write_text("# @package _global_\n# Mine.\nalgorithm: {name: mine}\nrollout:\n  max_redraw: 3\n")
    source = write(tmp_path, "defaults:\n  - quickstart\n  - _self_\nname: x\n")
    with pytest.raises(ConfigError) as caught:
        compose_config(source, ["algorithm=mine"])
    assert "mine.yaml:5: unknown key 'rollout.max_redraw'; did you mean rollout.max_redraws?" in str(caught.value)
    preset.write_text("# @package _global_\nalgorithm: {name: mine}\nrollout: {max_redraws: 3}\n")
    config = compose_config(source, ["algorithm=mine"])
    assert (config.algorithm.name, config.rollout.max_redraws) == ("mine", 3)


@pytest.mark.parametrize("name", ["missing.yaml", "folder", "exp.yml"])
def test_a_file_that_cannot_be_one_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "exp.yml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=name.partition(".")[0]):
        ConfigSource.file(tmp_path / name)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "exp.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        compose_config(ConfigSource.file(tmp_path / "exp.yaml"))


def test_a_wrong_config_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        ConfigSource.named("quikstart")
    with pytest.raises(ConfigError):
        ConfigSource.named("../pyproject")


def test_sweeps_expand_in_order() -> None:
    swept = expand_sweep(["seed=1,2", "name=x", "train.betas=[0.9,0.95]", "train.total_steps=range(1,3)"])
    assert [(one[0], one[3]) for one in swept] == [
        ("seed=1", "train.total_steps=1"),
        ("seed=1", "train.total_steps=2"),
        ("seed=2", "train.total_steps=1"),
        ("seed=2", "train.total_steps=2"),
    ]
    assert {one[2] for one in swept} == {"train.betas=[0.9,0.95]"}


def test_every_key_of_the_schema_can_be_overridden_by_its_own_value() -> None:
    config = compose_config(QUICKSTART)
    tree = OmegaConf.structured(config)
    values = {key: OmegaConf.select(tree, key) for key in valid_keys()}
    overrides = [f"{key}={value}" for key, value in values.items() if isinstance(value, int | float | bool)]
    assert len(overrides) > 40
    assert compose_config(QUICKSTART, overrides) == config


def test_options_belong_to_what_they_are_options_of(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("defaults: [quickstart, _self_]\nreward: {fn: arithmetic}\ndata: {path: t.jsonl, kwargs: {a: 1}}\n")
    own = compose_config(ConfigSource.file(file), ["data.kwargs.b=2"])
    assert own.data.kwargs == {"a": 1, "b": 2}
    gsm8k = ConfigSource.named("gsm8k")
    assert set(compose_config(gsm8k, ["data.path=x"]).reward.kwargs) == {"parts"}
    assert compose_config(gsm8k, ["data.path=x", "reward.fn=gsm8k"]).reward.kwargs == {}
    replaced = compose_config(gsm8k, ["data.path=x", "reward.kwargs={parts: {format: 1.0}}"])
    assert replaced.reward.kwargs == {"parts": {"format": 1.0}}


SEVERAL = """
defaults: [gsm8k, _self_]
reward:
  rewards:
    accuracy: {weight: 0.8}
    format: {weight: 0.2, kwargs: {answer: marked}}
"""


def test_several_rewards_replace_the_preset_s_one(tmp_path: Path) -> None:
    reward = compose_config(write(tmp_path, SEVERAL), ["data.path=x"]).reward
    assert (reward.fn, reward.kwargs) == (None, {})
    assert {name: (part.weight, part.kwargs) for name, part in reward.rewards.items()} == {
        "accuracy": (0.8, {}),
        "format": (0.2, {"answer": "marked"}),
    }


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("reward.rewards.style.fn=judge", ["accuracy", "format", "style"]),
        ("reward.rewards.format.kwargs.answer=boxed", ["accuracy", "format"]),
        ("reward.rewards={length: {weight: 2}}", ["length"]),
        ("reward.fn=math", []),
    ],
)
def test_several_rewards_on_the_command_line(tmp_path: Path, override: str, names: list[str]) -> None:
    reward = compose_config(write(tmp_path, SEVERAL), ["data.path=x", override]).reward
    assert sorted(reward.rewards) == names
    assert reward.fn == ("math" if not names else None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.rewards.accuracy.wight=2", r"did you mean reward\.rewards\.\*\.weight\?"),
        ("reward.rewards.accuracy.weight=much", r"reward\.rewards\.accuracy\.weight: 'much' is not a number"),
        ("reward.rewards=3", "expected named sections"),
        ("reward.rewards.accuracy=3", "expected a section"),
    ],
)
def test_a_wrong_entry_of_several_rewards_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config(write(tmp_path, SEVERAL), ["data.path=x", override])
