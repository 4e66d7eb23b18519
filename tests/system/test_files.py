import json
import os
import re
import stat

import pytest

from common.system.files import atomic_path, require_output, require_parent, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_write_replaces_the_file(tmp_path):
    path = tmp_path / "results.json"
    for value in (1, 2):
        write_json(path, {"value": value})
    assert json.loads(path.read_text()) == {"value": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_keeps_the_suffix_that_writers_look_at(tmp_path):
    with atomic_path(tmp_path / "picture.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.touch()


def test_lists_of_numbers_take_one_line(tmp_path):
    document = {"times": [1, 2.5, -3e-05], "rows": [[1, 2], [3]], "names": ["[\n  1\n]", "b"], "none": []}
    write_json(tmp_path / "a.json", document)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == document
    assert '"times": [1, 2.5, -3e-05]' in text
    assert "[1, 2]" in text


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "results.json", {"miou": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder .*nowhere does not exist"):
        require_parent(tmp_path / "nowhere" / "out.onnx")
    with pytest.raises(IsADirectoryError):
        require_parent(tmp_path)


def test_a_pipe_or_device_is_never_replaced_by_a_file(tmp_path):
    """A rename over /dev/null would take it from the whole machine."""
    os.mkfifo(tmp_path / "out.onnx")
    with pytest.raises(ValueError, match=r"out\.onnx: a pipe, socket or device"), atomic_path(tmp_path / "out.onnx"):
        pass
    assert stat.S_ISFIFO((tmp_path / "out.onnx").stat().st_mode)


def test_an_output_is_neither_the_input_nor_of_another_kind(tmp_path):
    weights = tmp_path / "a.pth"
    weights.write_text("weights")
    os.link(weights, tmp_path / "linked.onnx")
    for path in (weights, tmp_path / "linked.onnx"):
        message = f"{re.escape(str(path))}: the file that is read, .*give the result another place"
        with pytest.raises(ValueError, match=message):
            require_output(path, ".onnx", weights)
    with pytest.raises(ValueError, match=r"b\.pth: wanted the suffix \.onnx"):
        require_output(tmp_path / "b.pth", ".onnx", weights)
    require_output(tmp_path / "b.ONNX", ".onnx", weights)
