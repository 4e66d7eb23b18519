"""The pictures of a report that compares outputs: what each model says of an image, where it differs from the first,
and labels that are maps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.benchmark.outputs import OutputMeasurement
from common.data.label_files import read_label
from common.data.output_drawing import difference_picture, is_map, limits_of, output_picture, save_outputs
from common.data.shots import Shot
from common.report.pictures import Panel, Scene

KINDS_OF_LABELS = {"segmentation": "logits", "lanes": "logits", "depth": "values"}  # those that are maps, by task


def output_scenes(measurement: OutputMeasurement) -> list[Scene]:
    """Original, its label where that is a map, and for every output that is a map each model's and each difference from
    the first model's."""
    scenes = []
    for index, outputs in measurement.drawn.items():
        rgb = measurement.inputs.shots.load(measurement.samples[index])[-1]
        label_map, kind = _label_map(measurement, measurement.samples[index])
        panels = [Panel("Original", None, rgb)]
        if label_map is not None:
            panels.append(Panel("Label", None, output_picture(rgb, label_map, kind, limits_of(label_map))))
        for number, (name, kind) in enumerate(measurement.outputs.items()):
            maps = {label: tensors[number][0].numpy() for label, tensors in outputs.items()}
            reference, *others = maps
            if not is_map(maps[reference]):
                continue
            limits = limits_of(maps[reference])
            panels += [Panel(name, label, output_picture(rgb, each, kind, limits)) for label, each in maps.items()]
            panels += [
                Panel(
                    f"{name}, difference",
                    label,
                    difference_picture(rgb, maps[reference], maps[label], kind, limits),
                )
                for label in others
            ]
        scenes.append(Scene(index, tuple(panels)))
    return [scene for scene in scenes if len(scene.panels) > 1]


def _label_map(measurement: OutputMeasurement, shot: Shot) -> tuple[np.ndarray | None, str]:
    """The label of a shot as an output that says the same, and of which kind that is; None where it is no map."""
    score = measurement.score
    if score is None or score.task not in KINDS_OF_LABELS:
        return None, ""
    label = read_label(shot, score.task, score.names)
    kind = KINDS_OF_LABELS[score.task]
    return (label if kind == "values" else np.where(label == 1, 1.0, -1.0)), kind


def save_output_pictures(folder: Path, measurement: OutputMeasurement) -> list[Path]:
    """Write a PNG file for each image and output that is a map, and return the files."""
    return [path for path in _saved(folder, measurement) if path]


def _saved(folder: Path, measurement: OutputMeasurement) -> Iterator[Path | None]:
    for index, outputs in measurement.drawn.items():
        shot = measurement.samples[index]
        rgb = measurement.inputs.shots.load(shot)[-1]
        label_map, label_kind = _label_map(measurement, shot)
        labels = (
            [] if label_map is None else [("Label", output_picture(rgb, label_map, label_kind, limits_of(label_map)))]
        )
        for number, (name, kind) in enumerate(measurement.outputs.items()):
            maps = {label: tensors[number][0].numpy() for label, tensors in outputs.items()}
            yield save_outputs(folder, shot, name, rgb, maps, kind, labels)
