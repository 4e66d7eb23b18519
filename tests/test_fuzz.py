"""Readers fed with anything: whatever the bytes, nothing but ValueError or OSError comes out, and nothing is run."""

import io
import json
from functools import cache

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.archives import require_no_code
from common.checkpoints import Description, read_checkpoint, save_checkpoint
from common.gate import read_baseline
from common.image_header import read_header
from common.labels import class_ids
from common.onnx_files import read_graph, require_image_input
from common.resume import is_complete
from common.transforms import read_rgb

FEW, MANY = 40, 5000  # examples of `make test` and of `make test-faults`
OURS = (ValueError, OSError)


def examples(test):
    """The test with few examples, and marked slow with many."""
    checks = [HealthCheck.function_scoped_fixture]

    @pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
    def repeated(tmp_path, count):
        @settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None, derandomize=True)
        @given(st.data())
        def run(data):
            test(tmp_path, data)

        run()

    repeated.__doc__ = test.__doc__
    return repeated


def damaged(data, good: bytes) -> bytes:
    """`good` with some bytes changed, cut off or put in, or other bytes altogether."""
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(st.binary(max_size=300))
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        what = data.draw(st.sampled_from(["change", "cut", "insert"]))
        if what == "cut":
            del content[place:]
        elif what == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
    return bytes(content)


def only_our_errors(read) -> None:
    try:
        read()
    except OURS as error:
        assert str(error)


@cache
def encoded(suffix):
    return cv2.imencode(suffix, np.full((16, 24, 3), (220, 255, 0), np.uint8))[1].tobytes()


@examples
def test_masks_and_images(tmp_path, data):
    path = tmp_path / "mask.png"
    path.write_bytes(damaged(data, encoded(data.draw(st.sampled_from([".png", ".jpg"])))))
    only_our_errors(lambda: class_ids(read_rgb(path, labelled=True)))
    only_our_errors(lambda: read_header(path.read_bytes(), path))


@cache
def checkpoint(legacy):
    content = io.BytesIO()
    document = {
        "description": Description("SceneSeg", "fp32", 1.0, (32, 64)).__dict__,
        "model_state_dict": {"a": torch.ones(9)},
    }
    torch.save(document, content, _use_new_zipfile_serialization=not legacy)
    return content.getvalue()


@examples
def test_checkpoints(tmp_path, data):
    path = tmp_path / "w.pth"
    path.write_bytes(damaged(data, checkpoint(data.draw(st.booleans()))))
    only_our_errors(lambda: read_checkpoint(path))
    assert is_complete(path) in (True, False)
    only_our_errors(lambda: require_no_code(path))


@cache
def onnx_bytes():
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    images = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 32, 64)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", images[:1], images[1:], [weight])
    return helper.make_model(graph).SerializeToString()


@examples
def test_onnx_files(tmp_path, data):
    path = tmp_path / "a.onnx"
    path.write_bytes(damaged(data, onnx_bytes()))
    only_our_errors(lambda: require_image_input(read_graph(path), path))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@examples
def test_results(tmp_path, data):
    """The baseline of a gate: whatever is in it, the gate says what is wrong with it."""
    path = tmp_path / "results.json"
    document = {"schema": 2, "models": {"A": {}}, "images": [], "environment": {"cpu": "x"}}
    for key in data.draw(st.sets(st.sampled_from([*document, "more"]))):
        document[key] = data.draw(JSON)
    text = json.dumps(document).encode()
    path.write_bytes(text if data.draw(st.booleans()) else damaged(data, text))
    only_our_errors(lambda: read_baseline(path))


def test_a_saved_checkpoint_is_what_the_fuzzer_starts_from(tmp_path):
    (tmp_path / "w.pth").write_bytes(checkpoint(False))
    assert torch.equal(read_checkpoint(tmp_path / "w.pth").state["a"], torch.ones(9))
    save_checkpoint(tmp_path / "v.pth", {"a": torch.ones(9)}, Description("SceneSeg", "fp32", 1.0, (32, 64)))
    assert is_complete(tmp_path / "v.pth")
