"""Writing files so that a reader, or a crash, never meets half of one."""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_NUMBERS = re.compile(r"\[\n([\s\d.,eE+-]+)\]")  # an indented list that holds numbers only


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRITER_FAILURES = ("PytorchStreamWriter failed", "file write failed", "iostream error")  # PyTorch's, without an errno
NAME_BYTES = 255  # of one name in the usual file systems
STEM_BYTES = 60  # of a name that is made of another one
# first bytes of files that are often found in the place of another one
STAND_INS = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file itself; git lfs pull",
    b"<!doctype": "it is a web page; download the file itself",
    b"<html": "it is a web page; download the file itself",
    b"<?xml": "it is XML, such as the error page of a download; download the file itself",
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
    b"bzh": "it is compressed with bzip2; unpack it first",
    b"\xfd7zxz\0": "it is compressed with xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "it is a 7-Zip archive; unpack it first",
}


def sha256(*paths: Path) -> str:
    """The SHA-256 of the content of files, one after the other, hexadecimal: `cat PATHS | sha256sum`."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; it takes the final name when the block succeeds.

    The data is on the disk (fsync) before the rename, unless `durable` is switched off: then a power failure may leave
    a damaged file under the final name. The temporary file is removed when the block fails.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: the disk or the quota is full; the message names `path`, and what stood there before is as it was.
    """
    require_parent(path)
    temporary = path.with_name(f".{short_stem(path.stem)}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if (number := _no_space(error)) is None:
            raise
        raise OSError(
            f"{path}: not written ({os.strerror(number)}); files written before are whole; "
            "free some space or raise the quota"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _no_space(error: BaseException | None) -> int | None:
    """The system's number for a full disk or quota, where that is the cause; PyTorch hides it behind its own error."""
    if isinstance(error, RuntimeError) and any(text in str(error) for text in WRITER_FAILURES):
        return errno.ENOSPC
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return error.errno
        error = error.__context__
    return None


def short_stem(stem: str) -> str:
    """`stem`, or its beginning with a hash of the whole where it is too long to become part of another name."""
    encoded = os.fsencode(stem)
    if len(encoded) <= STEM_BYTES:
        return stem
    beginning = encoded[:STEM_BYTES].decode("utf-8", "ignore")
    return f"{beginning}~{hashlib.sha256(encoded).hexdigest()[:8]}"


def new_folder(path: Path) -> Path:
    """Make the folder `path`, or `path`_2, _3, ... where there is one: a clock may stand still or go backwards.

    Raises:
        FileExistsError: a part of the path is a file, or a link to nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # not below: what is in its way is not there to be counted up
    number, folder = 1, path
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}_{number}")
        else:
            return folder


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


def require_ordinary(path: Path) -> None:
    """Refuse what is no file before it is read: a pipe makes a reader wait for ever, a device may never end.

    A folder passes: reading one is an error of the system that names it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a pipe, a socket or a device.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError(f"{path}: a pipe, socket or device; wanted an ordinary file")


def stand_in(beginning: bytes) -> str:
    """What a file is that stands in for another one, by its first bytes, and the cure; empty where it does not."""
    return next((text for start, text in STAND_INS.items() if beginning.lstrip().lower().startswith(start)), "")


def require_parent(path: Path) -> None:
    """Fail before the work, not after it, when `path` cannot be written.

    Raises:
        FileNotFoundError: there is no such folder.
        IsADirectoryError: `path` itself is a folder.
        PermissionError: the folder cannot be written to.
        ValueError: `path` is a pipe, a socket or a device, which the finished file would replace.
        OSError: the name is too long.
    """
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise OSError(f"{path}: a name of more than {NAME_BYTES} bytes; give a shorter one")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    if path.exists():
        require_ordinary(path)
    require_writable(path.parent)


def require_other(path: Path, source: Path) -> None:
    """Raise ValueError where `path`, which is to be written, is the file `source`, which would be lost."""
    if path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{path}: the file that is read, {source}; give the result another place")


def require_output(path: Path, suffix: str, source: Path) -> None:
    """`require_parent` for a file that is made of another one, under the suffix by which its readers know its kind.

    Raises:
        FileNotFoundError, OSError: as `require_parent`.
        ValueError: another suffix, or `path` is the file `source`, which would be lost.
    """
    require_parent(path)
    require_other(path, source)
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path}: wanted the suffix {suffix}, by which the other scripts know such a file")


def require_writable(folder: Path) -> None:
    """Raise PermissionError for a folder in which no file can be made."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: cannot be written to; change its permissions, or give another folder")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; bytes of a file name that are no UTF-8 become escapes (\\udcff)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, document: object) -> None:
    """Write `document` as indented JSON, lists of numbers on one line, whole or not at all.

    NaN and infinity are refused (ValueError).
    """
    text = json.dumps(document, indent=2, allow_nan=False)  # a text of the document holds no line break of its own
    write_text(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")
