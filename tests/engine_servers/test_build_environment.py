"""The script that builds the environments of servers, with one small package in place of a server's many."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from process_trees import LONGEST

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build(tmp_path: Path) -> tuple[list[str], dict[str, str], Path]:
    """The command, its variables and where it builds."""
    scripts = tmp_path / "requirements"
    scripts.mkdir()
    shutil.copy(ROOT / "requirements" / "build_environment.sh", scripts)
    wheel(tmp_path, "1.0")
    (scripts / "sglang_gpu.txt").write_text("small==1.0\n")
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
        "AREAL_X_ENVIRONMENTS": str(tmp_path / "environments"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return (
        [str(scripts / "build_environment.sh"), "sglang_gpu", sys.executable],
        variables,
        tmp_path / "environments",
    )


def wheel(folder: Path, version: str) -> None:
    """A package with one module and one program."""
    info = f"small-{version}.dist-info"
    files = {
        "small.py": f"version = {version!r}\ndef main(): print(version)\n",
        "broken.py": "print 'of another Python'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: small\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nsmall-program = small:main\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"small-{version}-py3-none-any.whl", "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)


def run(command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=LONGEST * 3)


def folders(root: Path) -> list[Path]:
    """Whole environments and remains of builds, without the link."""
    return sorted(path for path in root.iterdir() if not path.is_symlink())


def test_an_environment_is_built_once_and_again_for_another_list(
    build: tuple[list[str], dict[str, str], Path],
) -> None:
    command, variables, root = build
    result = run(command, variables)
    assert result.returncode == 0, result.stderr
    (home,) = folders(root)
    link = root / "sglang_gpu"
    assert link.resolve() == home
    program = subprocess.run([link / "bin" / "small-program"], capture_output=True, text=True, check=True)
    assert program.stdout == "1.0\n", "programs must name the interpreter where it ended up"
    (compiled,) = home.glob("lib/python3*/site-packages/__pycache__/small.*.pyc")
    assert compiled.stat().st_size > 0, "compiled also where PYTHONDONTWRITEBYTECODE is set"

    built = (home / "bin").stat()
    assert run(command, variables).returncode == 0
    assert folders(root) == [home] and (home / "bin").stat().st_ino == built.st_ino, "built again"

    wheel(Path(variables["PIP_FIND_LINKS"]), "2.0")
    Path(command[0]).with_name("sglang_gpu.txt").write_text("small==2.0\n")
    assert run(command, variables).returncode == 0
    assert len(folders(root)) == 2 and home in folders(root) and link.resolve() != home


def test_an_interrupted_build_is_not_taken_for_good(build: tuple[list[str], dict[str, str], Path]) -> None:
    command, variables, root = build
    process = subprocess.Popen(command, env=variables, start_new_session=True)
    until = time.monotonic() + LONGEST
    while not list(root.glob(".sglang_gpu-*/bin/python")):
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / "sglang_gpu").exists()
    result = run(command, variables)
    assert result.returncode == 0, result.stderr
    assert (root / "sglang_gpu/bin/small-program").exists()


def test_two_builds_at_once_do_not_meet(build: tuple[list[str], dict[str, str], Path]) -> None:
    command, variables, root = build
    both = [subprocess.Popen(command, env=variables) for _ in range(2)]
    assert [process.wait(LONGEST * 3) for process in both] == [0, 0]
    (home,) = folders(root)
    assert (root / "sglang_gpu").resolve() == home and not list(root.glob(".*"))


def test_a_failed_build_leaves_nothing_and_says_what_to_do(build: tuple[list[str], dict[str, str], Path]) -> None:
    command, variables, root = build
    Path(command[0]).with_name("sglang_gpu.txt").write_text("small==3.0\n")
    result = run(command, variables)
    assert result.returncode != 0
    assert "small==3.0" in result.stderr and "add PyTorch's index of CPU wheels" in result.stderr
    assert not list(root.iterdir())


def test_an_interpreter_that_is_none(build: tuple[list[str], dict[str, str], Path]) -> None:
    command, variables, root = build
    result = run([*command[:2], "no-such-python"], variables)
    assert result.returncode != 0 and "no-such-python is no Python" in result.stderr and not root.exists()
