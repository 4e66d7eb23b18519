"""The scenes of the demo, by their own command line."""

import cv2
import pytest

from common.data.datasets import SampleSource, find_samples
from examples import make_scenes
from models.family import find_network
from tests.command_lines import call, refusal


def test_as_many_scenes_of_each_dataset_as_are_asked_for(tmp_path, capsys):
    names = ["Mapillary_Vistas", "comma10k"]
    flags = ["--output", tmp_path / "data", "--images_per_dataset", 10, "--datasets", *names]
    call(make_scenes, flags)
    assert "wrote 10 scenes of each of Mapillary_Vistas, comma10k below" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == names
    source = SampleSource.of("SceneSeg", find_network("SceneSeg")[1], tmp_path / "data", names=names)
    samples = [sample for split in ("train", "val") for sample in find_samples(source, split)]
    assert sorted(sample.dataset for sample in samples) == sorted(names * 10)
    for sample in samples:
        assert cv2.imread(str(sample.image)).shape == cv2.imread(str(sample.mask)).shape
    assert "--overwrite" in refusal(make_scenes, flags, capsys)
    call(make_scenes, [*flags, "--overwrite"])


def test_no_scene_is_wrong_usage(tmp_path):
    with pytest.raises(SystemExit) as exit_info:
        call(make_scenes, ["--output", tmp_path, "--images_per_dataset", 0])
    assert exit_info.value.code == 2
