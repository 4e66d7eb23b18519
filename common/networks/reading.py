"""What a checkpoint file holds, read without running any code in it: PyTorch's formats and safetensors."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from common.system.archives import BROKEN, require_plain_archive
from common.system.files import stand_in

ZIP, PICKLE = b"PK", b"\x80"  # first bytes of PyTorch's two formats
JSON_START = 8  # where a safetensors file, after the length of its header, begins with "{"
TAR_MAGIC = slice(257, 262)
FOREIGN_CLASS = re.compile(r"GLOBAL (\S+) was not an allowed global")  # as PyTorch says it


def read_document(path: Path) -> Any:
    """The content of a checkpoint file: its first bytes tell its format, not its suffix.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another kind, or holds pickled code.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder; wanted one file, as torch.save or safetensors write it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    with path.open("rb") as file:
        beginning = file.read(512)
    if beginning[JSON_START : JSON_START + 1] == b"{":
        return _read_safetensors(path)
    if beginning.startswith(ZIP):
        _require_checkpoint_archive(path)
        require_plain_archive(path)
    elif not beginning.startswith(PICKLE):
        found = stand_in(beginning) or "is it damaged, or of another kind?"
        if beginning[TAR_MAGIC] == b"ustar":
            found = "it is a tar archive; unpack it first"
        raise ValueError(f"{path}: not a checkpoint of PyTorch or safetensors; {found}")
    return _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from error


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # by its name PyTorch would believe the suffix .safetensors
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = FOREIGN_CLASS.search(str(error))
        code = f"pickled code ({found[1]})" if found else "pickled code"
        raise ValueError(
            f"{path}: not a plain state dict, or it holds {code}, which is never loaded because loading runs it; where "
            "you trust the file, load it with torch.load(path, weights_only=False) in a process of your own and save "
            "its weights alone: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # noqa: BLE001 - what a damaged file raises has no common base
        if getattr(error, "filename", None):  # the system's error; one without a name is a seek to a false place
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: damaged, or not a PyTorch checkpoint ({reason})") from error


def _require_checkpoint_archive(path: Path) -> None:
    """Refuse a zip archive that is whole, but no checkpoint: PyTorch's word for it is that the file is damaged.

    Raises:
        ValueError: TorchScript, a file of torch.export, or an archive of other files.
    """
    with path.open("rb") as file:
        try:
            names = zipfile.ZipFile(file).namelist()
        except BROKEN:  # PyTorch says what is wrong
            return
    ends = {name.partition("/")[2] for name in names}
    if "constants.pkl" in ends or any(end.startswith("models/") for end in ends):
        raise ValueError(
            f"{path}: a traced network (TorchScript, torch.export), not its weights; give the checkpoint it was made of"
        )
    if names and "data.pkl" not in ends:
        raise ValueError(f"{path}: a zip archive of {names[0]!r:.80} and such, not a checkpoint; unpack it first")
