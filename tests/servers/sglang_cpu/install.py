"""Makes SGLang start on a CPU: run by the interpreter of the environment that holds it, once.

* Puts the stand-in for ``sgl_kernel`` beside this file into site-packages, unless the real package is there.
* torchvision's wheel of the package index is built for CUDA. Its compiled part cannot load without, and then its import
  fails, because it describes two operators that nobody has declared: they are declared for that case.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sysconfig
from pathlib import Path

MARK = "# Declared for a torch without CUDA"
DECLARATIONS = f"""

{MARK}: the compiled part, which would do it, cannot load there.
if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{{_name}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def install_kernels(packages: Path) -> None:
    """Copy the stand-in, unless a distribution brought the real one."""
    target = packages / "sgl_kernel"
    if any("sgl_kernel" in names for names in importlib.metadata.packages_distributions()):
        return
    shutil.copytree(
        Path(__file__).parent / "sgl_kernel",
        target,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )


def declare_operators(packages: Path) -> None:
    """Add the declarations to torchvision; a second time nothing happens."""
    extension = packages / "torchvision" / "extension.py"
    text = extension.read_text(encoding="utf-8")
    if MARK not in text:
        extension.write_text(text + DECLARATIONS, encoding="utf-8")


def main() -> None:
    """Install both into the running interpreter's environment."""
    packages = Path(sysconfig.get_path("purelib"))
    install_kernels(packages)
    declare_operators(packages)


if __name__ == "__main__":
    main()
