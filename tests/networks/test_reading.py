"""What is given in the place of a checkpoint is told by its content, and never run."""

import argparse
import gzip
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from common.networks.reading import read_document


@pytest.fixture
def weights(tmp_path):
    torch.save(nn.Conv2d(3, 3, 1).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def zipped(path, weights, compression):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.write(weights, weights.name)


def tarred(path, weights):
    with tarfile.open(path, "w") as archive:
        archive.add(weights, weights.name)


class Scripted(nn.Module):
    """Traced networks are zip archives with weights in them, too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


# name: (writer of a path, what the line says)
OTHERS = {
    "gzip": (
        lambda path, weights: path.write_bytes(gzip.compress(weights.read_bytes())),
        "compressed with gzip; unpack",
    ),
    "tar": (tarred, "a tar archive; unpack it first"),
    "zip": (lambda path, weights: zipped(path, weights, zipfile.ZIP_STORED), "zip archive of 'weights.pth' and such"),
    "packed zip": (lambda path, weights: zipped(path, weights, zipfile.ZIP_DEFLATED), "zip archive of 'weights.pth'"),
    "NumPy": (lambda path, _: np.savez(path.open("wb"), a=np.zeros(3)), r"zip archive of 'a\.npy'"),
    "HDF5": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600)), "not a checkpoint of PyTorch"),
    "Git LFS": (lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
    "a web page": (lambda path, _: path.write_text("\n<!DOCTYPE html><html>"), "a web page; download the file itself"),
    "an error page": (lambda path, _: path.write_text("<?xml version='1.0'?><Error>"), "download the file itself"),
    "text": (lambda path, _: path.write_text("no checkpoint"), "is it damaged, or of another kind"),
    "TorchScript": (lambda path, _: torch.jit.script(Scripted()).save(str(path)), "traced network"),
    "torch.export": (
        lambda path, _: torch.export.save(torch.export.export(Scripted(), (torch.zeros(1),)), path.open("wb")),
        "traced network",
    ),
    "a folder": (lambda path, _: path.mkdir(), "a folder; wanted one file"),
    "a whole network": (lambda path, _: torch.save(nn.Identity(), path), r"code \(torch\.nn\.modules\.\S+\), which"),
    "Lightning with arguments": (
        lambda path, _: torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace(a=1)}, path),
        r"pickled code \(argparse\.Namespace\), .* save its weights alone",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_checkpoint_is_called_by_its_name(case, weights, tmp_path):
    write, message = OTHERS[case]
    write(tmp_path / "w.pth.tar", weights)
    with pytest.raises(ValueError, match=message) as error:
        read_document(tmp_path / "w.pth.tar")
    assert str(error.value).startswith(f"{tmp_path / 'w.pth.tar'}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["w.pth", "w.pth.tar", "w.ckpt", "w.bin", "w"])
def test_the_suffix_does_not_matter(name, weights, tmp_path):
    weights.rename(tmp_path / name)
    assert read_document(tmp_path / name).keys() == {"weight", "bias"}
