"""Networks as files that run without this repository: TorchScript (.pt) and torch.export (.pt2).

They are traced on the CPU and run on any device, and their parameters are frozen: the program that runs a file without
`no_grad` keeps no activations for gradients that nobody asks for.
"""

import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common.networks.metadata import TORCH_FILE


def write_torchscript(model: nn.Module, example: torch.Tensor, path: Path, metadata: Mapping[str, object]) -> None:
    """Any batch size; the image size is that of `example` (N, C, H, W), on the CPU; the file holds `metadata`."""
    with torch.inference_mode():
        traced = torch.jit.trace(_frozen(model), example, check_trace=False)
        content = io.BytesIO()  # PyTorch's own writer ends the process where the disk is full
        torch.jit.save(traced, content, _extra_files={TORCH_FILE: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())


def write_exported(model: nn.Module, example: torch.Tensor, path: Path, metadata: Mapping[str, object]) -> None:
    """Any batch size; the image size is that of `example` (N, C, H, W), on the CPU; the file holds `metadata`."""
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(_frozen(model), (example,), dynamic_shapes=dynamic)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={TORCH_FILE: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())


def _frozen(model: nn.Module) -> nn.Module:
    """A copy on the CPU, since a trace keeps what it was made on, whose parameters take no gradients."""
    return copy.deepcopy(model).cpu().requires_grad_(False)
