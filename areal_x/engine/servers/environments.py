"""Which interpreter runs a server, and whether the server that it has is one that this library speaks to.

vLLM and SGLang pin other versions of torch than this library needs, so each usually lives in a virtual environment of
its own. ``make vllm-cpu``, ``make sglang-cpu`` and ``make sglang-gpu`` build such environments in one folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from areal_x.api.errors import ConfigError

__all__ = ["check_server_version", "environments_dir", "find_server_python"]

_VERSION_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of server: its distributions (the first found counts), versions from ``first`` to before ``end``."""

    title: str
    distributions: tuple[str, ...]
    first: tuple[int, int, int]
    end: tuple[int, int, int]
    variable: str
    environments: tuple[str, ...]
    """Folders that make targets build, in the order in which they are looked at."""
    how_to_get: str

    @property
    def supported(self) -> str:
        first, end = (".".join(map(str, version)) for version in (self.first, self.end))
        return f">={first},<{end}"


_KINDS = {
    "vllm": _Kind(
        title="vLLM",
        distributions=("vllm", "vllm-cpu"),
        first=(0, 32, 0),
        end=(0, 33, 0),
        variable="AREAL_X_VLLM_PYTHON",
        environments=("vllm_cpu",),
        how_to_get="`make vllm-cpu` builds it for a CPU, `pip install 'areal-x[vllm]'` installs it for a GPU",
    ),
    "sglang": _Kind(
        title="SGLang",
        distributions=("sglang",),
        first=(0, 5, 23),
        end=(0, 6, 0),
        variable="AREAL_X_SGLANG_PYTHON",
        environments=("sglang_gpu", "sglang_cpu"),
        how_to_get="`make sglang-cpu` builds it for a CPU, `make sglang-gpu` for a GPU",
    ),
}

_ASK = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def environments_dir() -> Path:
    """Where make targets build environments: ``AREAL_X_ENVIRONMENTS``, else a folder in the user's cache."""
    chosen = os.environ.get("AREAL_X_ENVIRONMENTS")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "areal_x" / "environments"


def find_server_python(kind: str, python: str | None) -> Path:
    """The interpreter that runs servers of ``kind`` (``vllm`` or ``sglang``).

    The first of: ``python`` (``rollout.server.python``), the variable ``AREAL_X_VLLM_PYTHON`` or
    ``AREAL_X_SGLANG_PYTHON``, this interpreter if it has the server, what make targets have built.

    Raises:
        ConfigError: there is none, or the one that was named does not exist; the message says how to get one.
    """
    facts = _KINDS[kind]
    if python is not None:
        return _named(python, "rollout.server.python", facts)
    if chosen := os.environ.get(facts.variable):
        return _named(chosen, facts.variable, facts)
    if any(map(_is_here, facts.distributions)):
        return Path(sys.executable)
    built = [environments_dir() / name / "bin" / "python" for name in facts.environments]
    for path in built:
        if os.access(path, os.X_OK):
            return path
    raise ConfigError(
        f"no {facts.title} found: neither this interpreter has it nor {environments_dir()} ({facts.how_to_get}); "
        f"or name an interpreter that has it with rollout.server.python=/path/to/python or {facts.variable}"
    )


def _is_here(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _named(python: str, source: str, facts: _Kind) -> Path:
    path = Path(python).expanduser()
    if path.is_dir():
        raise ConfigError(f"{source}={python} is a folder; name the interpreter in it, such as {path / 'bin/python'}")
    # A bare name is looked up as a shell does. A link is kept: a virtual environment's interpreter is one.
    found = shutil.which(path)
    if found is None:
        raise ConfigError(f"{source}={python} is no interpreter that can be run ({facts.how_to_get})")
    return Path(found).absolute()


def check_server_version(kind: str, python: Path) -> str:
    """The version of the server that ``python`` has, such as ``0.32.0+cpu``. Asks that interpreter, imports nothing.

    Raises:
        ConfigError: it has none, or one that is not supported; the message names those that are.
    """
    facts = _KINDS[kind]
    versions = _installed(python, facts)
    if not versions:
        raise ConfigError(
            f"{python} has no {facts.title} ({facts.supported} is supported; {facts.how_to_get}); "
            f"or name another interpreter with rollout.server.python=/path/to/python"
        )
    version = next(versions[name] for name in facts.distributions if name in versions)
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    release = tuple(int(number or 0) for number in numbers.groups()) if numbers else ()
    if not facts.first <= release < facts.end:
        raise ConfigError(
            f"{facts.title} {version} of {python} is not supported; {facts.supported} is ({facts.how_to_get})"
        )
    return version


def _installed(python: Path, facts: _Kind) -> dict[str, str]:
    command = [str(python), "-c", _ASK, *facts.distributions]
    try:
        # In a folder without modules: with -c, Python looks for them in the working directory first.
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=python.parent,
            timeout=_VERSION_DEADLINE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{python} did not say its {facts.title} version within {_VERSION_DEADLINE_SECONDS:g} s; "
            f"run it by hand, or name another with rollout.server.python=/path/to/python"
        ) from None
    except OSError as error:
        raise ConfigError(f"{python} cannot be run: {error.strerror}; {facts.how_to_get}") from None
    try:
        found = json.loads(result.stdout.strip().splitlines()[-1])
        return {str(name): str(version) for name, version in found.items()}
    except (ValueError, IndexError, AttributeError):
        said = (result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}").splitlines()[-1]
        raise ConfigError(f"{python} is no Python that can be asked for {facts.title}: {said}") from None
