"""Reading networks that run without this repository: TorchScript (.pt) and torch.export (.pt2).

export/traced_writer.py writes them.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from common.networks.metadata import TORCH_FILE
from common.system.archives import TORCHSCRIPT_CODE, require_no_code, require_plain_archive

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def read_torchscript(path: Path, device: torch.device) -> nn.Module:
    """The traced network on `device`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TorchScript file.
    """
    return _load_torchscript(path, device, {})


def torchscript_hw(path: Path) -> tuple[int, int] | None:
    """The input size (height, width) that the file says it was traced with, or None where it does not say."""
    extra = {TORCH_FILE: ""}
    _load_torchscript(path, torch.device("cpu"), extra)
    if not extra[TORCH_FILE]:
        return None
    try:
        _, height, width = json.loads(extra[TORCH_FILE])["input_shape"]
        return int(height), int(width)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its description {TORCH_FILE} is damaged ({error})") from error


def _load_torchscript(path: Path, device: torch.device, extra: dict[str, str]) -> nn.Module:
    _require_file(path)
    require_plain_archive(path, TORCHSCRIPT_CODE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch's advice to use torch.export
            return torch.jit.load(path, map_location=device, _extra_files=extra)
    except Exception as error:  # noqa: BLE001 - what a damaged file raises has no common base
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a TorchScript file ({reason}); weights alone have the suffix .pth") from error


def read_exported(path: Path, device: torch.device) -> nn.Module:
    """The exported network on `device`, whatever it was exported on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of torch.export, or it holds what loading would run.
    """
    return move_to_device_pass(_load_exported(path), device).module()


def exported_hw(path: Path) -> tuple[int, int]:
    """The input size (height, width) of an exported network."""
    program = _load_exported(path)
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    height, width = node.meta["val"].shape[-2:]
    return int(height), int(width)


def _load_exported(path: Path) -> torch.export.ExportedProgram:
    _require_file(path)
    require_no_code(path)
    try:
        with _weights_only():
            return torch.export.load(path)
    except Exception as error:  # noqa: BLE001 - torch.export.load raises bare assertions and errors of zip files
        raise ValueError(f"{path}: not a file of torch.export ({str(error).partition(chr(10))[0]})") from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """torch.export falls back to pickles that may run code; this variable of PyTorch's forbids it."""
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCE_WEIGHTS_ONLY) if before is None else os.environ.update({FORCE_WEIGHTS_ONLY: before})


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
