"""What an error tells a user: one printable line that says what failed and what to do about it."""

import errno
import os
from collections.abc import Mapping
from typing import Any

OUT_OF_MEMORY = (
    *("DefaultCPUAllocator", "bad_alloc", "Failed to allocate memory", "Insufficient"),
    *("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
NO_PRIMITIVE = "could not create a primitive"  # oneDNN, where it gets no memory for its code
NO_THREAD = ("Resource temporarily unavailable", "can't start new thread")  # C++ and Python, no memory for its stack
LOST_GPU = ("CUDA error", "CUDA driver error", "device-side assert", "NCCL error", "GPU is lost", "cuDNN error")
LOST_WORKER = ("DataLoader worker", "terminated abruptly")
IN_WORKER = "Original Traceback (most recent call last)"

CURES = {
    errno.EACCES: "change its permissions, or give another place",
    errno.EPERM: "change its permissions, or give another place",
    errno.EROFS: "give a place that can be written to",
    errno.ENOSPC: "free some space, or give another place",
    errno.EDQUOT: "free some space or raise the quota, or give another place",
    errno.EFBIG: "raise the limit on the size of files, or give another place",
    errno.ELOOP: "the link leads in a circle; remove it or point it to the file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.EISDIR: "a folder where a file is wanted; remove or rename it",
    errno.EEXIST: "remove it, or give another name",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer --workers",
    errno.EPIPE: "what reads the pipe has ended; let it read all",
    errno.EIO: "the disk fails; look into the system's log",
}

# without the name of a file: writers of files give it (common.system.files), so this was print
OF_PRINTING = {errno.ENOSPC: "standard output", errno.EPIPE: "standard output"}


def explain(error: BaseException, flags: Mapping[str, Any]) -> str:
    """The line for `error`, with flags of the script in it where those are the cure; `flags`: name -> value."""
    return one_line(_message(error, flags))


def _message(error: BaseException, flags: Mapping[str, Any]) -> str:
    text = str(error)
    if IN_WORKER in text:  # PyTorch hands over a worker's error with its traceback; its last line is the error
        text = text.strip().splitlines()[-1].partition(": ")[2]
    elif text in NO_THREAD:
        return f"out of memory, or of threads (ulimit -v, -u),{_smaller(flags)}"
    elif is_out_of_memory(error):
        return f"out of memory{_smaller(flags)}"
    elif _has(error, LOST_WORKER):
        return (
            "a data worker died; where the system killed it, memory was short: use fewer --workers (0: none)"
            + _go_on(flags)
        )
    elif _has(error, LOST_GPU):
        return f"the GPU failed ({text.partition(chr(10))[0]}); see nvidia-smi and the system's log" + _go_on(flags)
    if isinstance(error, OSError) and error.strerror is not None:
        code = error.errno or 0  # an error that a library made may have none
        name = os.fsdecode(error.filename) if error.filename else OF_PRINTING.get(code, "")
        cure = CURES.get(code, "")
        return f"{name}{': ' if name else ''}{error.strerror}{'; ' if cure else ''}{cure}"
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text.partition(chr(10))[0]} (add --debug for the traceback)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, on the CPU or a device."""
    refused = isinstance(error, MemoryError) or _is_pytorchs(error) or _has(error, OUT_OF_MEMORY)
    return refused or (isinstance(error, RuntimeError) and str(error) in (NO_PRIMITIVE, *NO_THREAD))


def _is_pytorchs(error: BaseException) -> bool:
    """By its name: errors are explained without PyTorch, too, as one of the command line."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _has(error: BaseException, texts: tuple[str, ...]) -> bool:
    return isinstance(error, Exception) and any(text in str(error) for text in texts) and not isinstance(error, OSError)


def _smaller(flags: Mapping[str, Any]) -> str:
    """What to try with less memory."""
    batch = flags.get("batch_size")
    if not isinstance(batch, int):
        return "; give a smaller input size, or close other programs"
    parts = flags.get("gradient_accumulation", 1)
    if not isinstance(parts, int):  # auto: the steps were divided as far as it goes
        return f" with the smallest parts; try a smaller --input_hw, or close other programs{_go_on(flags)}"
    if batch // parts > 1:
        more = 2 * parts
        return (
            f" with --batch_size {batch} in {parts} part(s); try --gradient_accumulation {more}, which computes the "
            f"same in less memory, or --batch_size {batch // 2}{_go_on(flags)}"
        )
    return f" with one image at a time; try a smaller --input_hw{_go_on(flags)}"


def _go_on(flags: Mapping[str, Any]) -> str:
    return "; --resume auto goes on from the last checkpoint" if "resume" in flags else ""


def one_line(text: str) -> str:
    """Line breaks as blanks; what a terminal would take for a command (a file name may hold it) as an escape."""
    joined = " ".join(text.split("\n"))
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in joined)
