"""An INT8 network lowered to XNNPACK, as an ExecuTorch program (.pte)."""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.fx import GraphModule

from common.runtimes.agreement import Agreement
from common.runtimes.parity import Check
from common.runtimes.pte import METADATA, PtePredictor
from common.system.files import atomic_path


def export_pte(
    int8: GraphModule,
    path: Path,
    input_shape: tuple[int, int, int],
    metadata: Mapping[str, object],
    check: Check,
    threads: int,
) -> Sequence[Agreement]:
    """Lower a converted INT8 network to XNNPACK for one image at a time, (1, *input_shape); whole or not at all.

    XNNPACK computes with signed activations, as `convert_pt2e` leaves them. What it does not take (GELU among others)
    stays with ExecuTorch's own kernels. The file gets its name only when `check` accepts it.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    logging.getLogger("executorch").setLevel(logging.ERROR)
    program = torch.export.export(_contiguous(int8), (torch.zeros(1, *input_shape),))
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: json.dumps(metadata)}
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(lowered.to_executorch().buffer)
        return check(PtePredictor(temporary, threads))


def _contiguous(graph: GraphModule) -> GraphModule:
    """A copy whose weights lie in the order of their axes, as XNNPACK asks for beside scales by channel.

    Those of a training are channels-last.
    """
    copied = copy.deepcopy(graph)
    for values in (*copied.parameters(), *copied.buffers()):
        values.data = values.data.contiguous()
    return copied
