"""Rewards of installed packages: real distributions on the path, found through their metadata."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from areal_x.api.errors import ConfigError
from areal_x.api.reward_arguments import innermost
from areal_x.reward import entry_points, get_reward_fn, list_rewards
from areal_x.reward import registry as registry_module
from areal_x.reward.listing import reward_list

REGISTERS = """
from areal_x.reward import register_reward

@register_reward("{name}", datasets=["{dataset}"], extracts="letters", returns="a count")
def {function}(completions: str) -> float:
    '''How many letters.'''
    return float(len(completions))
"""


def install(folder: Path, package: str, entries: dict[str, str], modules: dict[str, str]) -> None:
    """What an installer leaves behind: modules, and a .dist-info folder that names the entry points."""
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{entry_points.GROUP}]\n{lines}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, with a registry that has not looked for packages yet."""
    list_rewards()
    monkeypatch.setattr(registry_module, "_entries", dict(registry_module._entries))
    monkeypatch.setattr(registry_module, "_name_of_dataset", dict(registry_module._name_of_dataset))
    monkeypatch.setattr(entry_points, "_failures", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_function_and_a_module_register_rewards(site: Path) -> None:
    install(
        site,
        "letter_rewards",
        {"Shouting": "letter_functions:shouting", "anything": "letter_module"},
        {
            "letter_functions": "def shouting(completions: str, bonus: float = 0.0) -> float:\n"
            "    '''Is it all capitals?'''\n    return float(completions.isupper()) + bonus\n",
            "letter_module": REGISTERS.format(name="letters", dataset="Alphabet", function="letters"),
        },
    )
    assert get_reward_fn("shouting", bonus=1.0)(completions="HEY") == 2.0
    assert get_reward_fn("letters")(completions="abc") == 3.0
    assert get_reward_fn(None, dataset="someone/alphabet")(completions="abc") == 3.0
    assert pickle.loads(pickle.dumps(get_reward_fn("letters")))(completions="ab") == 2.0
    listed = {entry.name: entry for entry in list_rewards()}
    assert listed["letters"].extracts == "letters" and not listed["letters"].is_builtin
    assert listed["Shouting"].summary == "Is it all capitals?"
    assert "letters" in reward_list() and "not loaded" not in reward_list()


def test_packages_are_imported_once_and_only_when_they_are_asked(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = metadata.entry_points
    monkeypatch.setattr(metadata, "entry_points", lambda **group: searches.append(group) or search(**group))
    install(
        site,
        "counting",
        {"counted": "counting_module:counted"},
        {
            "counting_module": f"open({str(site / 'imports')!r}, 'a').write('x')\n"
            "def counted(completions: str) -> float:\n    return 1.0\n"
        },
    )
    get_reward_fn("gsm8k")
    get_reward_fn("openai/gsm8k")
    get_reward_fn("os.path:basename")
    assert not (site / "imports").exists() and "counting_module" not in sys.modules
    for _ in range(3):
        get_reward_fn("counted")
        list_rewards()
    assert (site / "imports").read_text() == "x"
    assert searches == [{"group": "areal_x.rewards"}]


def test_a_broken_package_is_told_and_harms_no_other(site: Path) -> None:
    install(
        site,
        "broken_rewards",
        {
            "exits": "exiting_module:fn",
            "missing": "no_such_module_at_all:fn",
            "nameless": "working_module:no_such_function",
            "number": "working_module:NUMBER",
            "raises": "raising_module:fn",
            "works": "working_module:works",
        },
        {
            "exiting_module": "raise SystemExit(3)\n",
            "raising_module": "raise RuntimeError('their fault\\nwith details')\n",
            "working_module": "NUMBER = 3\ndef works(completions: str) -> float:\n    return 1.0\n",
        },
    )
    assert get_reward_fn("works")(completions="") == 1.0
    for name, reason in {
        "exits": "SystemExit: 3",
        "missing": "ModuleNotFoundError: No module named 'no_such_module_at_all'",
        "nameless": "AttributeError: .*no_such_function",
        "number": "reward 'number' is a int",
        "raises": "RuntimeError: their fault$",
    }.items():
        with pytest.raises(ConfigError, match=f"package broken_rewards 1.2, entry point '{name}' = .*{reason}"):
            get_reward_fn(name)
    with pytest.raises(ConfigError, match=r"'unheard_of' is unknown.*not loaded: package broken_rewards 1\.2"):
        get_reward_fn("unheard_of")
    assert reward_list().count("not loaded: package broken_rewards 1.2") == 5
    assert len(entry_points.failures()) == 5
    assert isinstance(entry_points.failures()[0].error.__cause__, SystemExit)


def test_two_packages_that_claim_a_name_are_an_error_for_that_name(site: Path) -> None:
    function = "def fn(completions: str) -> float:\n    return {}\n"
    install(site, "first", {"twice": "first_fn:fn", "only_first": "first_fn:fn"}, {"first_fn": function.format(1.0)})
    install(site, "second", {"twice": "second_fn:fn", "GSM8K": "second_fn:fn"}, {"second_fn": function.format(2.0)})
    with pytest.raises(ConfigError, match=r"package second 1\.2, .*'twice' is claimed by first_fn\.fn and second_fn"):
        get_reward_fn("twice")
    assert get_reward_fn("only_first")(completions="") == 1.0
    module = innermost(get_reward_fn("gsm8k")).__module__
    assert module.startswith("areal_x.reward"), "a package cannot replace what is built in"
    assert "reward name 'GSM8K' is claimed by" in reward_list()


def test_two_modules_that_claim_a_data_set_are_an_error_for_it(site: Path) -> None:
    modules = {
        f"claims_{name}": REGISTERS.format(name=f"own_{name}", dataset="shared", function=f"own_{name}")
        for name in ("one", "two")
    }
    install(site, "claims", {"a": "claims_one", "b": "claims_two"}, modules)
    with pytest.raises(ConfigError, match=r"data set 'shared' is claimed by rewards 'own_one' and 'own_two'"):
        get_reward_fn(None, dataset="shared")
    assert get_reward_fn("own_one")(completions="ab") == 2.0


def test_the_command_line_lists_what_is_installed(tmp_path: Path) -> None:
    modules = {"letter_module": REGISTERS.format(name="letters", dataset="alphabet", function="letters")}
    install(tmp_path, "letter_rewards", {"any": "letter_module", "bad": "no_such_module_x"}, modules)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from areal_x.reward.listing import reward_list; "
    done = subprocess.run([sys.executable, "-c", code + "print(reward_list())"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("letters ")]
    assert row.split() == ["letters", "alphabet", "letters", "a", "count"]
    assert "not loaded: package letter_rewards 1.2, entry point 'bad'" in done.stdout
