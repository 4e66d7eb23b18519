"""Writing files so that a reader, or a crash, never meets half of one."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_NUMBERS = re.compile(r"\[\n([\s\d.,eE+-]+)\]")  # an indented list that holds numbers only


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; it takes the final name when the block succeeds.

    The data is on the disk (fsync) before the rename, unless `durable` is switched off: then a power failure may leave
    a damaged file under the final name. The temporary file is removed when the block fails.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    require_parent(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk; Windows cannot open folders, and needs not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in `folder`: files under `atomic_path`'s temporary names, of ended processes."""
    for path in folder.glob(".*.tmp*"):
        found = re.fullmatch(r"\..*\.(\d+)\.tmp(\..*)?", path.name)
        # one of our own number is of an earlier process: in a container every run has the same
        if found and (int(found[1]) == os.getpid() or not psutil.pid_exists(int(found[1]))):
            path.unlink(missing_ok=True)


def require_parent(path: Path) -> None:
    """Fail before the work, not after it, when the folder that `path` should be written to does not exist.

    Raises:
        FileNotFoundError: there is no such folder.
        IsADirectoryError: `path` itself is a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: object) -> None:
    """Write `document` as indented JSON, lists of numbers on one line, whole or not at all.

    NaN and infinity are refused (ValueError).
    """
    text = json.dumps(document, indent=2, allow_nan=False)  # a text of the document holds no line break of its own
    write_text(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")
