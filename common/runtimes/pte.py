"""ExecuTorch programs (.pte): lowering an INT8 network to XNNPACK, and running one.

ExecuTorch is imported where it is used: that takes seconds, in every process in which a benchmark measures a model.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from common.export.onnx_writer import Check
from common.runtimes.parity import Agreement
from common.system.files import atomic_path

MAGIC = b"ET"  # from the fifth byte of a program on
BACKEND = "XnnpackBackend"
DESCRIPTION = "quanty_description"  # a method of the program that returns its description as JSON


class PtePredictor:
    """An ExecuTorch program on the CPU, called like a model with one image, (1, C, H, W).

    The thread pool belongs to the process: the predictor that was opened last sets its size for all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no program, or its backend is not in this ExecuTorch.
    """

    def __init__(self, path: Path, threads: int):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such ExecuTorch program")
        with path.open("rb") as file:
            if not file.read(8)[4:].startswith(MAGIC):  # ExecuTorch would print the bytes that it finds
                raise ValueError(f"{path}: not an ExecuTorch program; give a file that --pte wrote")
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if not Runtime.get().backend_registry.is_available(BACKEND):
            raise ValueError(f"{BACKEND} is not in this ExecuTorch; install the version that requirements.txt pins")
        portable_lib._unsafe_reset_threadpool(threads)
        try:
            self.program = Runtime.get().load_program(path)
            self.method = self.program.load_method("forward")
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path}: not an ExecuTorch program that this version can load ({reason})") from error
        self.provider = f"ExecuTorch {BACKEND}"

    def __call__(self, images: Tensor) -> Tensor:
        return self.outputs(images)[0]

    def outputs(self, images: Tensor) -> list[Tensor]:
        """All outputs, in the program's order; copies, since the next call writes to the same memory."""
        return [output.clone() for output in self.method.execute([images.contiguous()])]

    @property
    def input_hw(self) -> tuple[int, int]:
        """The height and width that the program fixes."""
        _, _, height, width = self.method.metadata.input_tensor_meta(0).sizes()
        return height, width

    @property
    def description(self) -> dict[str, object]:
        """What the program says of itself (common.networks.metadata); empty where another tool made it."""
        if DESCRIPTION not in self.program.method_names:
            return {}
        (text,) = self.program.load_method(DESCRIPTION).execute([])
        return json.loads(text)


def export_pte(
    int8: GraphModule,
    path: Path,
    input_shape: tuple[int, int, int],
    description: Mapping[str, object],
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
    program = torch.export.export(int8, (torch.zeros(1, *input_shape),))
    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={DESCRIPTION: json.dumps(description)}
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(lowered.to_executorch().buffer)
        return check(PtePredictor(temporary, threads))
