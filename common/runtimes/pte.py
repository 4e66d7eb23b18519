"""ExecuTorch programs (.pte) called like a model; export/pte_writer.py writes them.

ExecuTorch is imported where it is used: that takes seconds, in every process in which a benchmark measures a model.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

MAGIC = b"ET"  # from the fifth byte of a program on
BACKEND = "XnnpackBackend"
METADATA = "quanty_description"  # a method of the program that returns its metadata as JSON


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
        self.path = path
        self.provider = f"ExecuTorch {BACKEND}"

    def __call__(self, images: Tensor) -> Tensor:
        return self.outputs(images)[0]

    def outputs(self, images: Tensor) -> list[Tensor]:
        """All outputs, in the program's order; copies, since the next call writes to the same memory.

        Raises:
            ValueError: the program fails on these images.
        """
        try:
            outputs = self.method.execute([images.contiguous()])
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{self.path}: ExecuTorch fails on images {tuple(images.shape)} ({reason}); each version of ExecuTorch "
                f"is built for one of PyTorch, which requirements.txt pins; this is PyTorch {torch.__version__}"
            ) from error
        return [output.clone() for output in outputs]

    @property
    def input_hw(self) -> tuple[int, int]:
        """The height and width that the program fixes."""
        _, _, height, width = self.method.metadata.input_tensor_meta(0).sizes()
        return height, width

    @property
    def metadata(self) -> dict[str, object]:
        """What the program says of itself (common.networks.metadata); empty where another tool made it."""
        if METADATA not in self.program.method_names:
            return {}
        (text,) = self.program.load_method(METADATA).execute([])
        return json.loads(text)
