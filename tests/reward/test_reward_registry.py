"""Selection of rewards by name, data set and import path, and what is bound to them."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from areal_x.api.errors import ConfigError
from areal_x.api.import_paths import load_object
from areal_x.api.reward_arguments import RewardArguments, innermost
from areal_x.reward import get_reward_fn, list_rewards, register_reward
from areal_x.reward import registry as registry_module
from areal_x.reward.arithmetic import arithmetic
from areal_x.reward.gsm8k import gsm8k
from areal_x.reward.listing import reward_table


def own_reward(completions: str, answer: str, bonus: float = 0.0) -> float:
    """A reward of one's own."""
    return float(completions == answer) + bonus


class OwnReward:
    """A reward with options."""

    def __init__(self, weight: float, dataset: str | None = None) -> None:
        self.weight = weight
        self.dataset = dataset

    def __call__(self, completions: str) -> float:
        return self.weight * len(completions)


class NotCallable:
    pass


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    list_rewards()
    monkeypatch.setattr(registry_module, "_entries", dict(registry_module._entries))
    monkeypatch.setattr(registry_module, "_name_of_dataset", dict(registry_module._name_of_dataset))


@pytest.mark.parametrize("name", ["gsm8k", "GSM8K", "openai/gsm8k", "someone/Gsm8k"])
def test_a_name_or_a_data_set_selects_a_builtin(name: str) -> None:
    assert innermost(get_reward_fn(name)) is gsm8k
    assert innermost(get_reward_fn(None, dataset=name)) is gsm8k


def test_no_column_of_the_data_is_taken_for_an_option() -> None:
    bound = RewardArguments.of(get_reward_fn("gsm8k"), "gsm8k").bound
    assert {"limit_value", "compat"} <= bound
    assert RewardArguments.of(get_reward_fn("gsm8k", limit_value=0.5), "gsm8k").bound == bound


def test_all_builtins_are_listed_with_a_summary() -> None:
    entries = {entry.name: entry for entry in list_rewards()}
    assert {"arithmetic", "composite", "format", "gsm8k"} <= set(entries)
    assert entries["arithmetic"].target is arithmetic
    assert all(entry.summary for entry in entries.values())
    assert list(entries) == sorted(entries)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8", "reward.fn='gsm8' is unknown; did you mean 'gsm8k'?"),
        ("gsm8kk", "did you mean 'gsm8k'?"),
        ("zzz", "is unknown; known: 2wikimultihopqa, "),
        ("f0", "did you mean 'f1'?"),
        ("multiple_choise", "did you mean 'multiple_choice'?"),
        ("mmlu_por", "did you mean 'mmlu_pro' or 'mmlu-pro' or 'mmlu'?"),
        ("gsm8k_v2_socratic_long", "is unknown"),
        ("no_such_package.module:fn", "no_such_package"),
        ("missing.py:fn", "missing.py"),
        ("open_rlhf:r.py:ok", "'open_rlhf' is none of the libraries areal, openrlhf, slime, trl, verl; did you mean"),
        ("Slime:r.py:ok", "'Slime' is none of the libraries areal, openrlhf, slime, trl, verl; did you mean 'slime'?"),
        ("verll:r.py::ok", "did you mean 'verl'?"),
        ("opnrlhf:r.py", "did you mean 'openrlhf'?"),
        ("slyme:pkg.mod:ok", "did you mean 'slime'?"),
        ("trll:pkg.mod.fn", "No module named 'trll'; 'trll' is none of the libraries"),
        ("nothing_like:r.py:ok", "'nothing_like' is none of the libraries areal, openrlhf, slime, trl, verl"),
        ("missing.py", "names a file only"),
        ("os.path:no_such_name", "no_such_name"),
        ("os:sep", "is not a function or a class"),
    ],
)
def test_an_unknown_reward_is_a_clear_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        get_reward_fn(name)
    assert message in str(error.value)


def test_a_data_set_without_a_reward_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"data\.name='my_data' has no built-in reward; set reward\.fn"):
        get_reward_fn(None, dataset="my_data")
    with pytest.raises(ConfigError, match=r"set reward\.fn"):
        get_reward_fn(None)


def test_options_are_bound_by_name_and_survive_pickling() -> None:
    bound = pickle.loads(pickle.dumps(get_reward_fn(f"{__name__}:own_reward" if __name__ in sys.modules else "gsm8k")))
    assert callable(bound)
    scored = pickle.loads(pickle.dumps(get_reward_fn("gsm8k", limit_value=-1.0)))
    assert scored(completions=r"\boxed{10000000!}", answer="#### 72").value == -1.0
    with pytest.raises(ConfigError, match=r"reward\.kwargs\.limit_valeu .*did you mean 'limit_value'"):
        get_reward_fn("gsm8k", limit_valeu=1.0)


def test_a_file_is_an_escape_hatch_and_its_function_pickles(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("WEIGHT = 2.0\n")
    (tmp_path / "code.py").write_text(
        "import helper_of_mine\n"
        "def score(completions, bonus=0.0):\n    return helper_of_mine.WEIGHT * len(completions) + bonus\n"
        "class Score:\n"
        "    def __init__(self, bonus):\n        self.bonus = bonus\n"
        "    def __call__(self, completions):\n        return score(completions, self.bonus)\n"
    )
    spec = f"{tmp_path / 'code.py'}"
    function = get_reward_fn(f"{spec}:score", bonus=1.0)
    assert function(completions="ab") == 5.0
    assert pickle.loads(pickle.dumps(function))(completions="ab") == 5.0
    assert get_reward_fn(f"{spec}:Score", bonus=3)(completions="a") == 5.0
    assert load_object(f"{spec}:score", "reward.fn") is load_object(f"{spec}:score", "reward.fn")
    with pytest.raises(ConfigError, match=r"needs reward\.kwargs\.bonus"):
        get_reward_fn(f"{spec}:Score")
    with pytest.raises(ConfigError, match="has no 'scores'"):
        get_reward_fn(f"{spec}:scores")


def test_what_a_module_raises_is_told_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "broken_reward.py").write_text("\nraise RuntimeError('mine')\n")
    with pytest.raises(ConfigError, match=r"broken_reward\.py:2: RuntimeError: mine") as caught:
        get_reward_fn(f"{tmp_path / 'broken_reward.py'}:fn")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.usefixtures("empty_registry")
def test_registering_selects_by_data_set_and_gives_the_data_set_to_a_class() -> None:
    register_reward("own", datasets=["Mine"])(own_reward)
    register_reward("own", datasets=["Mine"])(own_reward)
    register_reward("own_class")(OwnReward)
    assert get_reward_fn("someone/mine") is own_reward
    assert get_reward_fn("own_class", dataset="mine", weight=2.0).dataset == "mine"
    with pytest.raises(ConfigError, match=r"needs reward\.kwargs\.weight"):
        get_reward_fn("own_class")


@pytest.mark.usefixtures("empty_registry")
def test_two_claims_on_a_name_are_an_error() -> None:
    with pytest.raises(ConfigError, match="reward name 'GSM8K' is claimed by"):
        register_reward("GSM8K")(own_reward)
    with pytest.raises(ConfigError, match="data set 'gsm8k' is claimed by rewards 'gsm8k' and 'own'"):
        register_reward("own", datasets=["gsm8k"])(own_reward)
    with pytest.raises(ConfigError, match="data set 'format' of reward 'own'"):
        register_reward("own", datasets=["format"])(own_reward)
    register_reward("own", datasets=["mine"])(own_reward)
    with pytest.raises(ConfigError, match="'mine' is a data set of reward 'own'"):
        register_reward("mine")(OwnReward)
    assert "own" not in {entry.name for entry in list_rewards()} or get_reward_fn("own") is own_reward


@pytest.mark.usefixtures("empty_registry")
def test_what_cannot_be_called_or_imported_is_refused() -> None:
    def local(completions: str) -> float:
        return 0.0

    with pytest.raises(ConfigError, match="top of a module"):
        register_reward("local")(local)
    register_reward("not_callable")(NotCallable)
    with pytest.raises(ConfigError, match="without a __call__"):
        get_reward_fn("not_callable")


def test_arithmetic_is_an_exact_match() -> None:
    reward = get_reward_fn("arithmetic")
    results = [reward(completions=text, answer=" 12") for text in ("12", " 12\n", "120", "012", "")]
    assert [result.value for result in results] == [1, 1, 0, 0, 0]
    assert [result.metadata.get("answer") for result in results] == ["12", "12", "120", "012", None]
    assert reward(completions="12", answer=12).value == 1.0


def test_all_builtins_say_what_they_extract_and_return() -> None:
    builtins = [entry for entry in list_rewards() if entry.is_builtin]
    assert [entry.name for entry in builtins if not entry.extracts or not entry.returns or not entry.summary] == []


def test_the_modules_of_builtins_are_sorted_and_complete() -> None:
    modules = registry_module._BUILTIN_MODULES
    assert list(modules) == sorted(modules)
    places = {entry.target.__module__ for entry in list_rewards() if entry.is_builtin}
    assert all(any(place.startswith(f"areal_x.reward.{name}") for name in modules) for place in places)


@pytest.mark.parametrize("name", ["", " x", "a.b", "a:b", "a/b", 3])
def test_a_name_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no plain name"):
        register_reward(name)


def test_what_cannot_be_selected_is_refused() -> None:
    with pytest.raises(ConfigError, match="is no plain name"):
        register_reward("fine", datasets=["openai/gsm8k"])
    with pytest.raises(ConfigError, match="write datasets="):
        register_reward("fine", datasets="gsm8k")
    with pytest.raises(ConfigError, match="register a function or a class"):
        register_reward("fine")(3)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="is not importable"):
        register_reward("fine")(functools.partial(own_reward, bonus=1.0))
    with pytest.raises(ConfigError, match="is not importable"):
        register_reward("fine")(lambda completions: 1.0)


@pytest.mark.usefixtures("empty_registry")
def test_a_data_set_is_matched_exactly() -> None:
    register_reward("own", datasets=["Mine-v1.1"])(own_reward)
    assert get_reward_fn(None, dataset="someone/mine-V1.1") is own_reward
    assert get_reward_fn("someone/mine-v1.1") is own_reward
    for other in ("mine", "mine-v1.10", "my-mine-v1.1", "mine-v1.1/extra"):
        with pytest.raises(ConfigError, match="has no built-in reward"):
            get_reward_fn(None, dataset=other)


def test_a_failed_claim_leaves_the_registry_as_it_was() -> None:
    before = list_rewards(), dict(registry_module._name_of_dataset)
    with pytest.raises(ConfigError, match="is claimed by"):
        register_reward("own_too", datasets=["fresh", "gsm8k"])(own_reward)
    assert (list_rewards(), registry_module._name_of_dataset) == before


def test_the_table_fits_the_screen() -> None:
    lines = reward_table(list_rewards()).splitlines()
    assert max(map(len, lines)) <= 120
    words = " ".join(lines).replace(",", " ").split()
    assert {dataset for entry in list_rewards() for dataset in entry.datasets} <= set(words)
    starts = [lines[0].index(heading) for heading in ("name", "data sets", "extracts", "returns")]
    for line in lines[1:]:
        assert all(line[start - 1 : start].strip() == "" for start in starts[1:]), line
    first_column = [line.split()[0] for line in lines[2:] if line[0] != " "]
    assert first_column == [entry.name for entry in list_rewards()]


def test_importing_the_registry_and_all_builtins_stays_light() -> None:
    heavy = ("aiohttp", "math_verify", "openai", "sympy", "torch", "transformers")
    code = (
        "import sys; from areal_x.reward import list_rewards; list_rewards(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
