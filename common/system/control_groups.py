"""The control groups (Linux) that this process is in, by which containers and batch queues limit what it may take."""

from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OF_PROCESS = Path("/proc/self/cgroup")


def groups(controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of the groups with limits for a controller (`cpu`, `memory`): this process's own and those around it;
    each with the version of its files, 1 or 2."""
    if not OF_PROCESS.exists():
        return
    for line in OF_PROCESS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for base in (GROUPS / controller,) if controllers else (GROUPS, GROUPS / "unified"):
            own = base / path.lstrip("/")  # within a container the path may be that outside of it
            for folder in [own, *own.parents]:
                if folder.is_relative_to(base) and folder.is_dir():
                    yield folder, 1 if controllers else 2
