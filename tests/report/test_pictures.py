import base64

import cv2
import numpy as np
import pytest

from common.data.drawing import file_name
from common.report.pictures import SHOWN_WIDTH, chosen_indices, data_uri, save_pictures, scene
from tests.benchmarked import measured


@pytest.fixture(scope="module")
def measurement(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("measured"), PyTorch=0.05, ONNX_INT8=0.2, same=0.05)


def test_some_images_of_each_dataset_are_chosen(measurement):
    names = [measurement.samples[index].dataset for index in chosen_indices(measurement, 2)]
    assert names == ["Country", "Country", "Town", "Town"]


def test_a_scene_shows_every_model_and_where_it_differs(measurement):
    panels = [(panel.kind, panel.model) for panel in scene(measurement, 0).panels]
    predictions = [("Prediction", label) for label in ("PyTorch", "ONNX INT8", "same")]
    assert panels == [("Original", None), ("GT", None), *predictions, ("Disagreement", "ONNX INT8")]


def test_files_are_named_by_dataset_image_and_model(measurement, tmp_path):
    written = save_pictures(tmp_path, measurement, [0])
    names = [f"Country_0009_{label}.png" for label in ("PyTorch", "ONNX_INT8", "same")]
    assert [path.name for path in written] == names
    assert all(cv2.imread(str(path)) is not None for path in written)


def test_a_label_is_no_path():
    assert file_name("../a b/ü:c") == ".._a_b_ü_c"


def test_a_picture_in_the_page_is_a_small_jpeg():
    uri = data_uri(np.full((500, 1000, 3), (200, 100, 50), np.uint8))
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (SHOWN_WIDTH // 2, SHOWN_WIDTH, 3)
    assert np.abs(picture.astype(int) - (200, 100, 50)).max() < 5
