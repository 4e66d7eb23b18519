"""The pictures of a report without masks: what each model says of an image, and where it differs from the first."""

from collections.abc import Iterator
from pathlib import Path

from common.benchmark.outputs import OutputMeasurement
from common.data.output_drawing import difference_picture, is_map, limits_of, output_picture, save_outputs
from common.report.pictures import Panel, Scene


def output_scenes(measurement: OutputMeasurement) -> list[Scene]:
    """Original, and for every output that is a map each model's and each difference from the first model's."""
    scenes = []
    for index, outputs in measurement.drawn.items():
        rgb = measurement.inputs.shots.load(measurement.samples[index])[-1]
        panels = [Panel("Original", None, rgb)]
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


def save_output_pictures(folder: Path, measurement: OutputMeasurement) -> list[Path]:
    """Write a PNG file for each image and output that is a map, and return the files."""
    return [path for path in _saved(folder, measurement) if path]


def _saved(folder: Path, measurement: OutputMeasurement) -> Iterator[Path | None]:
    for index, outputs in measurement.drawn.items():
        shot = measurement.samples[index]
        rgb = measurement.inputs.shots.load(shot)[-1]
        for number, (name, kind) in enumerate(measurement.outputs.items()):
            maps = {label: tensors[number][0].numpy() for label, tensors in outputs.items()}
            yield save_outputs(folder, shot, name, rgb, maps, kind)
