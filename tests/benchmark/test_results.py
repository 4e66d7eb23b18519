import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from common.report.tables import dataset_rows, image_rows, model_rows
from common.system.csv_text import csv_text
from tests.benchmarked import document_of, measured


@pytest.fixture(scope="module")
def measurement(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("measured"), PyTorch=0.05, same=0.05, INT8=0.2)


@pytest.fixture(scope="module")
def document(measurement):
    return document_of(measurement)


def test_the_document_is_json_and_names_its_reference(document):
    assert json.loads(json.dumps(document, allow_nan=False)) == document | {
        "models": json.loads(json.dumps(document["models"]))
    }
    assert document["schema"] == 3
    assert document["reference"] == "PyTorch"
    assert list(document["differences"]) == ["same", "INT8"]
    assert len(document["images"]) == 6


def test_two_equal_models_have_no_significant_difference(document):
    same = document["differences"]["same"]
    assert same["tag"] == "kept"
    assert same["miou"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert same["different_pixels"] == 0
    assert same["worst_images"] == []
    assert document["models"]["same"]["overall"] == document["models"]["PyTorch"]["overall"]


def test_a_damaged_model_is_flagged(document):
    damaged = document["differences"]["INT8"]
    assert damaged["tag"] == "lost"
    assert damaged["miou"]["high"] < 0
    assert "accuracy is lost" in damaged["verdict"]
    assert damaged["different_pixels"] == 4 / 32  # rows 2 to 5 of 32


def test_every_model_is_identified_by_its_content(document):
    for model in document["models"].values():
        assert model["sha256"] == hashlib.sha256(Path(model["path"]).read_bytes()).hexdigest()


def test_figures_follow_from_the_confusion_matrices(document):
    for model in document["models"].values():
        matrices = np.array(model["per_image"]["confusion"]).reshape(-1, 3, 3)
        pooled = matrices.sum(axis=0)
        assert pooled.tolist() == model["overall"]["confusion"]
        iou = [pooled[c, c] / (pooled[c].sum() + pooled[:, c].sum() - pooled[c, c]) for c in range(3)]
        assert list(model["overall"]["iou"].values()) == pytest.approx(iou, abs=1e-9)
        assert model["overall"]["miou"] == pytest.approx(np.mean(iou), abs=1e-9)
        np.testing.assert_allclose(np.sum(model["overall"]["confusion_share"], axis=1), 1)
    first, damaged = (document["models"][label]["overall"]["miou"] for label in ("PyTorch", "INT8"))
    assert document["differences"]["INT8"]["miou"]["value"] == pytest.approx(damaged - first, abs=1e-12)


def test_the_worst_images_are_those_that_lose_most(document):
    before, after = (np.array(document["models"][label]["per_image"]["miou"]) for label in ("PyTorch", "INT8"))
    listed = document["differences"]["INT8"]["worst_images"]
    assert [image["index"] for image in listed] == np.argsort(after - before)[: len(listed)].tolist()
    assert listed[0]["drop"] == pytest.approx((before - after).max())


def test_all_raw_times_are_kept(document):
    model = document["models"]["INT8"]
    assert len(model["per_image"]["latency_ms"]) == model["latency_ms"]["n"] == 6
    assert max(max(runs) for runs in model["per_image"]["latency_ms"]) == pytest.approx(model["latency_ms"]["max"])
    assert len(model["block_medians_ms"]) == 6
    assert model["cold_start_ms"] == {"load": 500, "first_inference": 10}


def test_csv_rows_are_models_and_images(document):
    assert [row["model"] for row in model_rows(document)] == ["PyTorch", "same", "INT8"]
    rows = image_rows(document)
    assert len(rows) == 3 * 6
    assert sum(value for key, value in rows[0].items() if key.startswith("target_")) == 32 * 64
    assert model_rows(document)[2]["miou_difference"] == document["differences"]["INT8"]["miou"]["value"]
    assert model_rows(document)[0]["miou_difference"] is None
    (row,) = [row for row in dataset_rows(document) if (row["model"], row["dataset"]) == ("INT8", "Town")]
    scores, change = (part["INT8"]["datasets"]["Town"] for part in (document["models"], document["differences"]))
    assert row["images"] == 3
    assert (row["iou_Road"], row["iou_Road_low"]) == (scores["iou"]["Road"], scores["iou_interval"]["Road"][0])
    assert row["iou_Road_difference"] == change["iou"]["Road"]["value"]
    for rows in (model_rows(document), dataset_rows(document), image_rows(document)):
        assert {tuple(row) for row in rows} == {tuple(rows[0])}  # one head for all


def test_a_spreadsheet_takes_no_name_for_a_formula():
    text = csv_text([{"model": "=HYPERLINK(1)", "change": -0.5}, {"model": "@x", "change": None}])
    assert text.splitlines() == ["model,change", "'=HYPERLINK(1),-0.5", "'@x,"]
