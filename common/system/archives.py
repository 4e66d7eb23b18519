"""Zip archives that others made (.pth, .pt, .pt2): what they claim to hold, before anything is unpacked."""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

# the entries of a torch.export file below its first folder that hold no code: graph, numbers, notes
DATA_ENTRIES = re.compile(
    r"models/\w+\.json|data/(weights|constants)/(\w+_config\.json|weight_\d+|tensor_\d+)|data/sample_inputs/\w+\.pt"
    r"|extra/[\w.]+|archive_(format|version)|\.data/\w+|byteorder|version"
)
# a size as torch.export writes it: s40, 2*s40 + 1, Symbol('s40', positive=True, integer=True), Max(1, u0)
SYMBOL = r"Symbol\('[a-z]+\d+'(?:, [a-z_]+=(?:True|False))*\)"
EXPRESSION = re.compile(rf"(?:{SYMBOL}|[A-Z]\w*|[a-z]+\d+|[\d\s()+\-*/,<>=])*")
TORCHSCRIPT_CODE = 64 * 2**20  # bytes; TorchScript compresses its code, a SceneSeg's unpacks to 0.9 MB
ALIGNMENT, LOCAL_HEADER = 64, 30  # bytes: of PyTorch's entries, and in front of the name of each
PADDING_HEAD, PADDING_ID = struct.Struct("<HH"), 0x4246  # of PyTorch's own padding: "FB"
BROKEN = (  # what zipfile raises where an archive is damaged; OSError: a seek to before the start of the file
    zipfile.BadZipFile,
    EOFError,
    struct.error,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OSError,
)


def require_plain_archive(path: Path, most_packed: int = 0) -> None:
    """Refuse an archive that would unpack to more than itself: PyTorch stores its entries without compression.

    A file that is no zip archive passes; its reader says what is wrong with it.

    Args:
        most_packed: bytes that compressed entries may unpack to together.

    Raises:
        ValueError: compressed entries beyond that, or entries that claim more bytes than the file has.
    """
    with path.open("rb") as file:
        try:
            entries = zipfile.ZipFile(file).infolist()
        except BROKEN:
            return
    packed = [entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if sum(packed) > most_packed:
        raise ValueError(
            f"{path}: {len(packed)} compressed entries claim {sum(packed)} bytes, PyTorch's {most_packed} at most; "
            "a TorchScript file under another suffix than .pt, or a decompression bomb?"
        )
    claimed = sum(entry.file_size for entry in entries) - sum(packed)
    size = path.stat().st_size
    if claimed > size:
        raise ValueError(f"{path}: its entries claim {claimed} bytes, the file has {size}; a decompression bomb?")


def require_no_code(path: Path) -> None:
    """Refuse a torch.export file (.pt2) with more in it than a graph and numbers.

    `torch.export.load` unpickles some kinds of entries, loads shared libraries from others, and evaluates the
    expressions of dynamic sizes as Python.

    Raises:
        ValueError: such an entry or expression, or what `require_plain_archive` refuses.
    """
    require_plain_archive(path)
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            inner = {name: name.partition("/")[2] for name in archive.namelist()}
            graphs = [json.loads(archive.read(name)) for name in inner if inner[name].startswith("models/")]
        except BROKEN as error:
            raise ValueError(f"{path}: not a file of torch.export ({error})") from error
    strange = [name for name, entry in inner.items() if not DATA_ENTRIES.fullmatch(entry)]
    strange += [text for text in map(str, _values(graphs, "expr_str")) if not EXPRESSION.fullmatch(text)]
    if strange:
        raise ValueError(
            f"{path}: not a file of torch.export, or one whose loading may run code ({strange[0]:.80}); "
            "where you trust its maker, export the network anew with trace_pytorch_model.py --format exported"
        )


def without_entries(content: bytes, unwanted: re.Pattern[str]) -> bytes:
    """A zip archive without the entries whose whole names match, each of the others as it was.

    Numbers stay aligned as PyTorch writes them, for readers that map the file into memory.
    """
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.infolist():
            if unwanted.fullmatch(entry.filename):
                continue
            kept = zipfile.ZipInfo(entry.filename)  # of 1980, as PyTorch writes it
            kept.compress_type = entry.compress_type
            start = result.tell() + LOCAL_HEADER + len(entry.filename.encode()) + PADDING_HEAD.size
            padding = -start % ALIGNMENT
            kept.extra = PADDING_HEAD.pack(PADDING_ID, padding) + bytes(padding)
            new.writestr(kept, old.read(entry))
    return result.getvalue()


def is_intact(path: Path) -> bool:
    """Whether every byte of a checkpoint is what was written: PyTorch's format is a zip archive with checksums."""
    with path.open("rb") as file:
        try:
            require_plain_archive(path)
            return zipfile.ZipFile(file).testzip() is None
        except BROKEN:
            return False


def _values(document: object, wanted: str) -> Iterator[object]:
    """All values under the key `wanted`, however deep."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key == wanted:
                yield value
            yield from _values(value, wanted)
    elif isinstance(document, list):
        for each in document:
            yield from _values(each, wanted)
