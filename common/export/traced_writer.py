"""Networks as files that run without this repository: TorchScript (.pt) and torch.export (.pt2).

They are traced on the CPU and run on any device, and their parameters are frozen: the program that runs a file without
`no_grad` keeps no activations for gradients that nobody asks for. They hold nothing of the machine: PyTorch notes for
every operator the lines of code that it comes from, with their folders.
"""

import copy
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from common.networks.metadata import TORCH_FILE
from common.system.archives import without_entries

# entries of a TorchScript file: where its code comes from, and a sum over all entries
OF_THE_MACHINE = re.compile(r".*\.debug_pkl|[^/]+/\.data/serialization_id")
NOTES = ("stack_trace", "from_node")  # of the nodes of an exported graph


def write_torchscript(model: nn.Module, example: torch.Tensor, path: Path, metadata: Mapping[str, object]) -> None:
    """Any batch size; the image size is that of `example` (N, C, H, W), on the CPU; the file holds `metadata`."""
    with torch.inference_mode():
        traced = torch.jit.trace(_frozen(model), example, check_trace=False)
        content = io.BytesIO()  # PyTorch's own writer ends the process where the disk is full
        torch.jit.save(traced, content, _extra_files={TORCH_FILE: json.dumps(metadata)})
    path.write_bytes(without_entries(content.getvalue(), OF_THE_MACHINE))


def write_exported(model: nn.Module, example: torch.Tensor, path: Path, metadata: Mapping[str, object]) -> None:
    """Any batch size; the image size is that of `example` (N, C, H, W), on the CPU; the file holds `metadata`."""
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(_frozen(model), (example,), dynamic_shapes=dynamic)
    _strip_notes(program)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={TORCH_FILE: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())


def _strip_notes(program: torch.export.ExportedProgram) -> None:
    """Take out where operators come from, in place, also of graphs within."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            for note in NOTES:
                node.meta.pop(note, None)


def _frozen(model: nn.Module) -> nn.Module:
    """A copy on the CPU, since a trace keeps what it was made on, whose parameters take no gradients."""
    return copy.deepcopy(model).cpu().requires_grad_(False)
