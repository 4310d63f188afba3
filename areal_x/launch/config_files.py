"""Where the presets that ship with the package lie, and what each says about itself."""

from __future__ import annotations

from pathlib import Path

from areal_x.api.errors import ConfigError
from areal_x.launch.schema import nearest

__all__ = ["config_groups", "config_header", "config_names", "configs_dir", "find_config", "preset_package"]


def configs_dir() -> Path:
    """The folder of shipped presets: ``areal_x/configs`` in an installed package, ``configs`` beside it in a checkout.

    Raises:
        ConfigError: neither exists (a broken installation).
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "quickstart.yaml").is_file():
            return candidate
    raise ConfigError(f"the shipped configs are missing beside {package}; install areal-x again")


def config_names() -> list[str]:
    """Names of the shipped configurations, for ``--config-name``."""
    return sorted(path.stem for path in configs_dir().glob("*.yaml"))


def config_groups(*folders: Path) -> dict[str, list[str]]:
    """Preset folders (``algorithm``, ``rollout``) with their presets, shipped ones and those in ``folders``."""
    groups: dict[str, set[str]] = {}
    for folder in (configs_dir(), *folders):
        for path in folder.glob("*/*.yaml"):
            groups.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(names) for group, names in sorted(groups.items())}


def find_config(name: str) -> Path:
    """The file of a shipped configuration or preset (``quickstart``, ``algorithm/grpo``).

    Raises:
        ConfigError: there is none of that name.
    """
    path = configs_dir() / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file() or not path.resolve().is_relative_to(configs_dir().resolve()):
        presets = [f"{group}/{preset}" for group, names in config_groups().items() for preset in names]
        hint = nearest(name, config_names() + presets) or "; areal-x config list shows them"
        raise ConfigError(f"no shipped config {name!r}{hint}")
    return path


def config_header(path: Path) -> str:
    """The comment at the top of a configuration file, without the comment marks."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n".join(line for line in lines if not line.startswith("@package"))


def preset_package(path: Path) -> str:
    """The section that a preset's keys belong to: what its ``# @package`` line says (empty for the whole
    configuration), else its folder's name."""
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.lstrip("# ").split()
        if not line.startswith("#"):
            break
        if words[:1] == ["@package"] and len(words) == 2:
            return "" if words[1] == "_global_" else words[1]
    return path.parent.name
