"""Memory of this process: how much more it may take, and how much it takes at its peak, on the CPU or a CUDA device."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from common.system.control_groups import groups

if sys.platform == "win32":
    resource = None
else:
    import resource

RESERVE = 0.15  # of the free memory, not to be planned with: fragmentation, other programs, validation's processes
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
# version of a control group -> its files: its limit, what it holds, and of that the page cache, which gives way
FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of the device on CUDA, else of the machine and of what limits it here.

    On the CPU the least of the available RAM, the room in its control groups (v1 and v2, as containers and batch queues
    set them), and the room below `ulimit -v` and `ulimit -d`.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min([psutil.virtual_memory().available, *_room_in_groups(), *_room_below_limits()]))


def _room_in_groups() -> Iterator[int]:
    """The room in every control group with a limit that this process is in."""
    for folder, version in groups("memory"):
        limit, usage, cache = FILES[version]
        if (folder / limit).exists():
            yield from _room_in_group(folder, limit, usage, cache)


def _room_in_group(folder: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    text = (folder / limit).read_text().strip()
    if not text.isdecimal():  # "max"
        return
    held = int((folder / usage).read_text())
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    yield int(text) - held + int(statistics.get(cache, 0))


def _room_below_limits() -> Iterator[int]:
    if resource is None:
        return
    memory = psutil.Process().memory_info()
    for limit, held in (("RLIMIT_AS", memory.vms), ("RLIMIT_DATA", getattr(memory, "data", 0))):
        most, _ = resource.getrlimit(getattr(resource, limit))
        if most != resource.RLIM_INFINITY:
            yield most - held


class PeakMemory:
    """The bytes that this process takes at its peak from now on, beyond those that it holds now.

    On CUDA of what PyTorch allocates on the device; else of resident memory, or of the address space where that is
    limited and grows more.
    """

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.resident, self.space = torch.cuda.memory_allocated(device), 0
        else:
            reset_peak()
            memory = psutil.Process().memory_info()
            self.resident, self.space = memory.rss, memory.vms

    def growth(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.resident
        is_limited = any(True for _ in _room_below_limits())
        space = psutil.Process().memory_info().vms - self.space if is_limited else 0
        return max(peak_resident() - self.resident, space)


def reset_peak() -> None:
    """Forget the peak of resident memory so far, where the system can (Linux: proc(5), clear_refs) and may."""
    if CLEAR_REFS.exists():
        with suppress(PermissionError):
            CLEAR_REFS.write_text("5")


def peak_resident() -> int:
    """The peak of this process's resident memory in bytes."""
    # not getrusage: its ru_maxrss starts from the parent's memory in a new process
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    info = psutil.Process().memory_info()
    return getattr(info, "peak_wset", info.rss)  # Windows has the peak, macOS only the present value
