"""The files of one checkpoint: ``manifest.json`` names them all, with their sizes and checksums.

Checksums are CRC-32: they find what disks, copies and full file systems do to files, at the speed of reading them.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from areal_x.api.errors import CheckpointError

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Checkpoint",
    "described",
    "is_checkpoint",
    "open_checkpoint",
    "read_json",
    "sync_directory",
    "write_json_atomically",
    "write_manifest",
]

FORMAT_VERSION = 1
"""Of everything in the directory; a reader refuses newer ones."""
MANIFEST = "manifest.json"
_KIND = "areal_x checkpoint"
_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole."""

    path: Path
    step: int
    facts: dict[str, Any]
    """What the run gave to ``commit``."""
    identity: dict[str, str]
    """What its models are; see ``run_identity``."""


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint, good or bad, and not a model or a run."""
    return (path / MANIFEST).is_file() and not (path / "config.json").exists()


def open_checkpoint(path: Path, identity: Mapping[str, str] | None = None) -> Checkpoint:
    """Verify a checkpoint: its manifest, the size and checksum of each file, and what its models are.

    Args:
        identity: what they have to be, as far as it says. Default: not compared.

    Raises:
        CheckpointError: names the directory, what is wrong with it, and what to do.
    """
    manifest = _read_manifest(path)
    if identity is not None:
        _check_identity(path, manifest["identity"], identity)
    for name, (size, checksum) in sorted(manifest["files"].items()):
        _check_file(path, name, size, checksum)
    return Checkpoint(path, manifest["step"], manifest["facts"], manifest["identity"])


def write_manifest(folder: Path, step: int, identity: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Bring all files of ``folder`` to the disk, then a manifest that names them; returns it.

    Raises:
        OSError: something cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest: dict[str, Any] = {
        "kind": _KIND,
        "format": FORMAT_VERSION,
        "step": step,
        "identity": dict(identity),
        "facts": dict(facts),
        "files": {path.relative_to(folder).as_posix(): _synced(path) for path in files},
    }
    for directory in (path for path in folder.rglob("*") if path.is_dir()):
        sync_directory(directory)
    write_json_atomically(folder / MANIFEST, manifest | {"checksum": _checksum_of(manifest)})
    # As a reader will see it.
    written: dict[str, Any] = read_json(folder / MANIFEST)
    return written


def write_json_atomically(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole; it is on the disk when this returns.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises ``OSError`` or ``ValueError``."""
    return json.loads(path.read_text(encoding="utf-8"))


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def described(error: OSError) -> str:
    """An error of the system, and what to do about it."""
    fix = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
    return f"{error.strerror or error}{fix}"


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path}: there is no such directory; checkpoints are runs/NAME/checkpoints/*")
    fix = "use another checkpoint"
    try:
        manifest = read_json(path / MANIFEST)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} has no {MANIFEST}: it is none, or it is incomplete; {fix}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} cannot be read ({error}); {fix}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is not that of a checkpoint; {fix}")
    version = manifest.get("format")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {version}, and this areal_x reads up to {FORMAT_VERSION}; use the "
            "newer areal_x that wrote it"
        )
    checksum = manifest.pop("checksum", None)
    if checksum != _checksum_of(manifest):
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is damaged (its checksum differs); {fix}")
    return manifest


def _check_identity(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    for key in sorted(wanted):
        if found.get(key) != wanted[key]:
            raise CheckpointError(
                f"checkpoint {path} is from another model: its {key} is {found.get(key, 'not told')}, and this run's "
                f"is {wanted[key]}; give the configuration that it was written with, or start anew with resume=never"
            )


def _check_file(folder: Path, name: str, size: int, checksum: int) -> None:
    path, fix = folder / name, "use another checkpoint"
    try:
        found = path.stat().st_size
        if found != size:
            kind = "truncated" if found < size else "too long"
            raise CheckpointError(f"checkpoint {folder}: {name} is {kind} ({found} of {size} bytes); {fix}")
        if _checksum(path) != checksum:
            raise CheckpointError(f"checkpoint {folder}: {name} is damaged (its checksum differs); {fix}")
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {folder}: {name} is missing; {fix}") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder}: {name} cannot be read ({described(error)}); {fix}") from error


def _synced(path: Path) -> tuple[int, int]:
    """Bring a file to the disk; its size and checksum."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path.stat().st_size, _checksum(path)


def _checksum(path: Path) -> int:
    checksum, block = 0, bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            checksum = zlib.crc32(view[:count], checksum)
    return checksum


def _checksum_of(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode())
