"""What an exported file holds of the machine and the folders that it was written on: nothing."""

import importlib
import sys
import zipfile
from pathlib import Path

import pytest

from tests.command_lines import call
from tests.own_folder import TWO_MAPS, own_folder, write_drive

ROOT = Path(__file__).resolve().parents[2]
NETWORK = ["-n", "two_maps:NET", "-p", "weights.pth"]
INT8 = ["--int8", "--calibration_data", "drive"]
FILES = {
    "traced.pt": ("trace_pytorch_model", ["-o", "traced.pt"]),
    "exported.pt2": ("trace_pytorch_model", ["-o", "exported.pt2", "--format", "exported"]),
    "fp32.onnx": ("convert_pytorch_to_onnx", ["-o", "fp32.onnx"]),
    "int8.onnx": ("convert_pytorch_to_onnx", ["-o", "int8.onnx", *INT8]),
    "int8.pte": ("convert_pytorch_to_onnx", ["-o", "int8.pte", *INT8, "--target", "executorch"]),
}


def contents(path):
    """The parts of a file, unpacked where it is an archive."""
    if not zipfile.is_zipfile(path):
        return {path.name: path.read_bytes()}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of one network, written in two folders."""
    folders = []
    for name in ("here", "there"):
        with own_folder(tmp_path_factory.mktemp(name), "two_maps", TWO_MAPS) as folder:
            write_drive(folder / "drive", 3)
            for script, arguments in FILES.values():
                call(importlib.import_module(script), [*NETWORK, *arguments])
            folders.append(folder)
    return folders


@pytest.mark.parametrize("name", FILES)
def test_no_path_of_the_machine_is_in_a_file(written, name):
    folders = [*written, ROOT, Path(sys.prefix), Path.home()]
    unwanted = [str(folder).encode() for folder in folders if len(folder.parts) > 1] + [b"site-packages"]
    for part, content in contents(written[0] / name).items():
        assert not [each for each in unwanted if each in content], part


@pytest.mark.parametrize("name", ["exported.pt2", "fp32.onnx", "int8.onnx", "int8.pte"])
def test_bytes_do_not_depend_on_the_folder(written, name):
    here, there = (folder / name for folder in written)
    assert here.read_bytes() == there.read_bytes()


def test_torchscript_holds_no_lines_of_code_nor_a_sum_over_them(written):
    names = contents(written[0] / "traced.pt")
    assert "archive/code/__torch__/two_maps.py" in names
    assert not [name for name in names if name.endswith((".debug_pkl", "serialization_id"))]


def test_numbers_of_torchscript_stay_where_a_reader_may_map_them(written):
    """Every entry begins at a multiple of 64 bytes, counted by hand: header, name and padding in front of it."""
    path = written[0] / "traced.pt"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    starts = []
    for entry in entries:
        name, extra = (int.from_bytes(content[entry.header_offset + at :][:2], "little") for at in (26, 28))
        starts.append(entry.header_offset + 30 + name + extra)
    assert len(starts) > 10 and not any(start % 64 for start in starts)
