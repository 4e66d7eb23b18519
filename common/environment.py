"""What a figure was measured on: processor, memory, system, and the versions of the libraries."""

import os
import platform
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
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "versions": versions(),
    }


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
