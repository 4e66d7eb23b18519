"""An INT8 network as ExecuTorch program: the same numbers, its description, and what is refused."""

import copy

import pytest
import torch

from common.export.int8_graph import for_target
from common.export.pte_writer import export_pte
from common.quantization.integer_reference import as_integer_kernels
from common.quantization.pt2e import quantize_after_training
from common.quantization.settings import QuantizationSettings
from common.runtimes.parity import compare
from common.runtimes.predictors import TorchPredictor
from common.runtimes.pte import PtePredictor
from common.runtimes.targets import ONNX_RUNTIME

SHAPE = (3, 64, 64)
PYTORCH = tuple(map(int, torch.__version__.split(".")[:2]))
needs_its_pytorch = pytest.mark.skipif(PYTORCH < (2, 14), reason="ExecuTorch 1.5 runs programs with PyTorch 2.14 alone")


@needs_its_pytorch
def test_a_program_computes_the_network_and_says_what_it_is(tiny_network, tmp_path):
    images = [torch.randn(1, *SHAPE) for _ in range(3)]
    int8 = quantize_after_training(tiny_network, SHAPE, QuantizationSettings(), images[:2])
    reference = TorchPredictor(as_integer_kernels(for_target(copy.deepcopy(int8), ONNX_RUNTIME)), torch.device("cpu"))
    path = tmp_path / "network.pte"

    def check(candidate):
        return compare(reference, candidate, images)

    (agreement,) = export_pte(int8, path, SHAPE, {"precision": "int8"}, check, threads=1)
    assert agreement.sqnr_db > 35
    predict = PtePredictor(path, threads=1)
    assert predict.input_hw == SHAPE[1:]
    assert predict.metadata == {"precision": "int8"}
    first = predict(images[0])
    kept = first.clone()
    predict(images[1])
    assert torch.equal(first, kept)  # a result is not overwritten by the next call
    assert torch.equal(predict(images[0]), kept)
    with pytest.raises(ValueError, match=r"network\.pte: ExecuTorch fails on images \(1, 3, 32, 32\).*PyTorch"):
        predict(images[0][..., :32, :32])


def test_what_is_no_program_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such ExecuTorch program"):
        PtePredictor(tmp_path / "absent.pte", 1)
    for content in (b"", b"not a program", bytes(4) + b"ET12" + bytes(100)):
        (tmp_path / "a.pte").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.pte: not an ExecuTorch program"):
            PtePredictor(tmp_path / "a.pte", 1)
