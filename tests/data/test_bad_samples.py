"""`--skip_bad`: the run goes on with what can be read, and says what it left out."""

import json

import pytest

from common.data.bad_samples import report_bad, usable_samples
from common.data.datasets import SampleSource
from common.data.pairs import BadSample
from examples.make_scenes import write_dataset
from tests import tiny_run
from tests.command_lines import refusal
from tests.family import NAME, NETWORK, found


@pytest.fixture
def root(tmp_path):
    """30 pairs of which one image is cut off, one mask is empty, one is missing, and one image has a twin."""
    write_dataset(tmp_path, "Town", 30, seed=0, size=(48, 96))
    images, masks = tmp_path / "Town/Town/images", tmp_path / "Town/Town/gt_masks"
    (images / "0003.jpg").write_bytes((images / "0003.jpg").read_bytes()[:500])
    (masks / "0008.png").write_bytes(b"")
    (masks / "0012.png").unlink()
    (images / "0015.png").write_bytes((images / "0015.jpg").read_bytes())
    return tmp_path


def usable(root, split, bad, skip_bad=True, workers=0):
    source = SampleSource.of(NAME, NETWORK, root, names=["Town"], skip_bad=skip_bad, workers=workers)
    return usable_samples(source, split, bad)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_left_out_and_named(root, workers):
    bad = []
    training = usable(root, "train", bad, workers=workers)
    stems = {sample.image.stem for sample in training}
    assert not stems & {"0003", "0008", "0012", "0015"}
    assert {path.rpartition("/")[2] for path in (each.path for each in bad)} == {
        "0003.jpg", "0008.jpg", "0012.jpg", "0015.jpg", "0015.png"
    }  # fmt: skip
    reasons = {each.path.rpartition("/")[2]: each.reason for each in bad}
    assert "not an image" in reasons["0003.jpg"] and "gt_masks/0008.png" in reasons["0008.jpg"]
    assert (reasons["0012.jpg"], reasons["0015.png"]) == ("no partner", "two files of one stem")


@pytest.mark.parametrize("mask", ["gone", "a twin too"])
def test_twins_are_listed_where_nothing_else_is_bad(tmp_path, mask):
    """Both leave with their stem: without a mask of it, or with two, no file is left that lacks a partner."""
    write_dataset(tmp_path, "Town", 30, seed=0, size=(48, 96))
    images, masks = tmp_path / "Town/Town/images", tmp_path / "Town/Town/gt_masks"
    (images / "0015.png").write_bytes((images / "0015.jpg").read_bytes())
    twins = {"0015.jpg", "0015.png"}
    if mask == "gone":
        (masks / "0015.png").unlink()
    else:
        (masks / "0015.PNG").write_bytes((masks / "0015.png").read_bytes())
        twins.add("0015.PNG")
    bad = []
    assert "0015" not in {sample.image.stem for sample in usable(tmp_path, "train", bad)}
    assert {each.path.rpartition("/")[2] for each in bad} == twins
    assert {each.reason for each in bad} == {"two files of one stem"}


def test_a_file_that_cannot_be_read_moves_no_other_to_another_split(tmp_path):
    write_dataset(tmp_path, "Town", 30, seed=0, size=(48, 96))
    before = {split: found(tmp_path, ["Town"], split) for split in ("train", "val")}
    for stem in ("0002", "0019"):
        (tmp_path / f"Town/Town/images/{stem}.jpg").write_bytes(b"")
    for split, samples in before.items():
        after = usable(tmp_path, split, [])
        assert after == [sample for sample in samples if sample.image.stem not in ("0002", "0019")]


def test_without_the_flag_the_first_bad_file_is_an_error(root):
    with pytest.raises(ValueError, match="same stem"):
        usable(root, "train", [], skip_bad=False)


def test_nothing_left_is_an_error(root):
    for path in (root / "Town/Town/gt_masks").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="--skip_bad: no train image of 26 is left; the first: .*not an image"):
        usable(root, "train", [])


def test_a_report_counts_and_lists_them():
    bad = [BadSample("Town", f"{number}.png", f"{number}.png: damaged") for number in range(60)]
    notes = report_bad(bad)
    assert notes[0] == "60 bad files were skipped (--skip_bad)."
    assert notes[1] == "skipped: 0.png: damaged"
    assert notes[-1] == "and 10 more, see results.json"
    assert report_bad([]) == []


def test_a_run_goes_on_without_them_and_lists_them(root, capsys, monkeypatch):
    arguments = ["-s", root / "out", "-r", root, "--datasets", "Town", "--workers", "0", "-e", "1", "--threads", "1"]
    assert "same stem" in refusal(tiny_run, arguments, capsys)
    monkeypatch.setattr("sys.argv", ["tiny_run.py", *map(str, arguments), "--skip_bad"])
    tiny_run.run(tiny_run.main, tiny_run.get_args_parser())
    assert "bad files are skipped" in capsys.readouterr().err
    assert len(json.loads((root / "out" / "skipped.json").read_text())) >= 4
    assert (root / "out" / "final.pth").exists()
