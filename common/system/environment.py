"""What a figure was measured on: processor, memory, system, and the versions of the code and its libraries."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

PACKAGES = (
    "torch",
    "torchvision",
    "torchao",
    "executorch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "numpy",
    "opencv-python-headless",
    "pillow",
)


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, object]:
    """The machine and its software, for a report."""
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "usable_processors": usable_processors(),
        "governor": _governor(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "commit": _commit(),
        "versions": versions(),
    }


def usable_processors() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _governor() -> str | None:
    """How the system chooses the processor's clock (Linux), where it says so."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else None


def _commit() -> str | None:
    """The commit of this toolkit, with -dirty where files differ from it; None without git or outside of a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_name() -> str:
    """The processor's marketing name, and whether it has the int8 dot product that INT8 speed rests on (Linux)."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    name = fields.get("model name", platform.machine())
    vnni = [flag for flag in ("avx512_vnni", "avx_vnni", "asimddp") if flag in fields.get("flags", "").split()]
    return f"{name} ({', '.join(vnni)})" if vnni else name
