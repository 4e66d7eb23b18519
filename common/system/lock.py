"""One run to a folder: a lock that the system takes back at any end of the process, SIGKILL included."""

import logging
import os
import sys
from pathlib import Path

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_held: dict[Path, int] = {}  # folder -> descriptor, open as long as the process lives


def hold_folder(folder: Path, remedy: str) -> None:
    """Make sure that no other process writes to `folder` until this one ends; `remedy` ends the message where one does.

    A record lock (lockf): worker processes do not inherit it, so that a killed run's folder is free at once. The file
    `.lock` stays; it says nothing by being there. A file system without locks is noted and taken as it is.

    Raises:
        ValueError: another process holds the folder.
        OSError: the folder cannot be written to.
    """
    key = folder.resolve()
    if fcntl is None or key in _held:
        return
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise ValueError(f"{folder}: another run writes there (process {holder}); {remedy}") from None
    except OSError as error:
        logger.warning("%s: cannot be locked (%s); see to it that no other run writes there", folder, error)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder / LOCK_FILE)) from error
    _held[key] = descriptor
