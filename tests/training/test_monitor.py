import csv

import pytest

from common.training.monitor import add_row, require_tensorboard


def rows_of(path):
    with path.open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def test_a_resumed_run_replaces_the_rows_of_its_past(tmp_path):
    path = tmp_path / "metrics.csv"
    for step, loss in ((5, 1.0), (10, 0.9), (15, 0.8)):
        add_row(path, {"step": step, "loss": loss})
    add_row(path, {"step": 10, "loss": 0.7})
    assert rows_of(path) == [(5, 1.0), (10, 0.7)]


def test_tensorboard_is_asked_for_before_the_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        require_tensorboard()


@pytest.mark.parametrize("content", [b"step,x\nabc,1\n", b"x\n1\n", b"step\n\xff\n", b"step\n1\n\0"])
def test_a_damaged_record_is_begun_anew_and_it_is_said(content, tmp_path, caplog):
    (tmp_path / "metrics.csv").write_bytes(content)
    add_row(tmp_path / "metrics.csv", {"step": 7, "loss": 0.5})
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1] == "7,0.5"
    assert "metrics.csv: damaged" in caplog.text or content.endswith(b"\0")
