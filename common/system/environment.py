"""What a figure was measured on: processor, memory, system, and the versions of the code and its libraries."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from common.system.processors import processor_name, usable_processors

GPUS = Path("/proc/driver/nvidia/gpus")  # a folder of each, with what the driver says of it
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
        "cpu": processor_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "usable_processors": usable_processors(),
        "governor": _governor(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": _gpu(),
        "system": platform.platform(),
        "commit": _commit(),
        "versions": versions(),
    }


def _gpu() -> str | None:
    """The GPU that PyTorch computes on; where it does not, the first that the driver lists (Linux).

    PyTorch would not tell the name without taking hold of the GPU, which a run on the CPU has no business with.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    listed = sorted(GPUS.glob("*/information"))
    found = re.search(r"^Model:\s*(.+?)\s*$", listed[0].read_text(), re.MULTILINE) if listed else None
    return found[1] if found else None


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
