"""Where ONNX Runtime's default int8 kernels are exact."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from common.runtimes import int8_kernels, predictors

CPU_INFO = Path("/proc/cpuinfo")


def processor_flags() -> set[str]:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split(":")[1].split()}


def test_the_probe_agrees_with_the_processor():
    flags = processor_flags()
    if "avx2" not in flags:
        pytest.skip("no x86 processor whose flags this system tells")
    has_dot_product = bool(flags & {"avx512_vnni", "avx_vnni"})
    assert int8_kernels.sums_saturate() == (not has_dot_product)


@pytest.mark.parametrize("channels", int8_kernels.CHANNELS)
def test_saturated_sums_are_told_from_right_ones(channels, monkeypatch):
    """A kernel that adds pairs of products in 16 bits gives about half of the largest sum."""

    class Saturating:
        def __init__(self, *_, **__):
            pass

        def run(self, _, feeds):
            pairs = np.minimum(2 * feeds["codes"].astype(int) * 127, 2**15 - 1)
            return [np.rint(pairs.sum(1, keepdims=True) / 2 / (127 * channels)).astype(np.uint8)]

    monkeypatch.setattr(ort, "InferenceSession", Saturating)
    assert int8_kernels._largest_sum(channels) < 255


@pytest.mark.parametrize("saturate", [False, True])
def test_exact_kernels_are_asked_for_only_where_sums_saturate(saturate, monkeypatch, tmp_path):
    """They halve the speed of a processor that has an int8 dot product."""
    asked = []
    monkeypatch.setattr(predictors, "sums_saturate", lambda: saturate)
    real = predictors.session_options
    monkeypatch.setattr(
        predictors,
        "session_options",
        lambda threads, exact_int8, *_: asked.append(exact_int8) or real(threads, exact_int8),
    )
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot load"):
        predictors.OnnxPredictor(tmp_path / "broken.onnx", threads=1)
    assert asked == [saturate]
