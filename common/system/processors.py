"""The processors that this process may use: those it is kept on, their cores, and the time that a container allows."""

import math
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from common.system.control_groups import groups

TOPOLOGY = Path("/sys/devices/system/cpu")


def processor_name() -> str:
    """The processor's marketing name, and whether it has the int8 dot product that INT8 speed rests on (Linux)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", platform.machine())
    vnni = [flag for flag in ("avx512_vnni", "avx_vnni", "asimddp") if flag in fields.get("flags", "").split()]
    return f"{name} ({', '.join(vnni)})" if vnni else name


def usable_processors() -> int:
    """How many processors can work for this process at a time: those it is kept on (taskset, `--pin`), and no more
    than its container's quota of their time; a quota of one and a half is one, at least one."""
    return _within_quota(len(_allowed()))


def physical_processors() -> int:
    """`usable_processors`, but one a core: a second thread on a core has no arithmetic of its own."""
    allowed = _allowed()
    cores = {_core(processor) for processor in allowed}
    if None in cores:  # not Linux: the whole machine's
        return _within_quota(min(psutil.cpu_count(logical=False) or len(allowed), len(allowed)))
    return _within_quota(len(cores))


def _allowed() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]


def _core(processor: int) -> str | None:
    """The processors that share a core with one, as the system lists them."""
    path = TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list"
    return path.read_text().strip() if path.exists() else None


def _within_quota(count: int) -> int:
    return max(1, min(count, math.floor(min(_quotas(), default=count))))


def _quotas() -> Iterator[float]:
    """How many processors' time this process's groups may take together, for each of them that has a limit."""
    for folder, version in groups("cpu"):
        try:
            if version == 1:
                quota, period = ((folder / f"cpu.cfs_{each}_us").read_text() for each in ("quota", "period"))
            else:
                quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):  # no limit there, or none that can be read
            continue


def pin(processors: Sequence[int]) -> None:
    """Keep this process, its threads and its children to come on these processors.

    Raises:
        ValueError: the system has no such call, or this process may not use one of them.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--pin: this system cannot bind a process to processors; leave the flag out")
    allowed = os.sched_getaffinity(0)
    if absent := sorted(set(processors) - allowed):
        raise ValueError(f"--pin: no processor {absent[0]} for this process; it may use {sorted(allowed)}")
    os.sched_setaffinity(0, set(processors))


def require_processors(thread_counts: Sequence[int]) -> None:
    """Raise ValueError where a count is above the processors of this process: threads that wait for each other."""
    if max(thread_counts, default=0) > usable_processors():
        raise ValueError(
            f"--thread_counts {max(thread_counts)}: this process may use {usable_processors()} processors; name less"
        )
