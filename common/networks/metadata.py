"""What an exported file says of itself: enough to feed the network and to read its output without this repository."""

import json
from collections.abc import Mapping

from common.data.camera import PLAIN, CameraFormat
from common.data.classes import classes_of
from models import Network

CAMERA = "camera"  # what a file says of the form of its image and of its map of classes; absent where it is the plain
TORCH_FILE = "quanty.json"  # the name of the metadata within a TorchScript or torch.export file


def describe(
    name: str,
    network: Network,
    width: float,
    precision: str,
    input_shape: tuple[int, int, int],
    versions: Mapping[str, str],
) -> dict[str, object]:
    """The metadata as values that JSON can hold; `input_shape` is (channels, height, width)."""
    fields = {
        "network": name,
        "task": network.task,
        "width": width,
        "precision": precision,
        "inputs": network.inputs,
        "outputs": network.outputs,
        "input_layout": "NCHW, float32",
        "input_shape": input_shape,
        "versions": versions,
    }
    if network.mean:
        fields |= {"input_layout": f"NCHW, {network.channel_order}, float32, (pixel / 255 - mean) / std"}
        fields |= {"mean": network.mean, "std": network.std, "channel_order": network.channel_order}
    if network.maps_classes:
        palette = dict(zip(network.classes, classes_of(network).colours, strict=True))
        fields |= {"classes": network.classes, "palette": palette}
    return fields


def of_camera(camera: CameraFormat, network: Network) -> dict[str, object]:
    """What a file in the form of a camera says beside `describe`, and instead of it; nothing of the plain form."""
    if camera == PLAIN:
        return {}
    said = camera.described(network.channel_order)
    if not camera.changes_input:
        return {CAMERA: said}
    numbers = "0 to 255" if camera.type == "uint8" else "(pixel / 255 - mean) / std"
    order = said["channels"].upper()
    layout = f"{camera.layout.upper()}, {order}, {camera.type}, {numbers}"
    return {CAMERA: said, "input_layout": layout, "inputs": dict.fromkeys(network.inputs, f"{order} image, {numbers}")}


def camera_of(metadata: Mapping[str, str]) -> CameraFormat:
    """What a file's metadata say of its form.

    Raises:
        ValueError: nothing that `of_camera` gives.
    """
    if CAMERA not in metadata:
        return PLAIN
    try:
        return CameraFormat.of(json.loads(metadata[CAMERA]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"its metadata are damaged: {error}") from error


def as_metadata(described: Mapping[str, object]) -> dict[str, str]:
    """What `describe` gives as ONNX metadata, which holds strings alone: text as it is, the rest as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}
