import pytest
import torch

from common.system.failures import is_out_of_memory


class Refused(torch.OutOfMemoryError):
    """As PyTorch's other devices may have one."""


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("of a device"), Refused("of a device"), MemoryError()])
def test_refused_memory_is_known_by_the_kind_of_error(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("of a device"), ValueError("bad mask"), OSError("bad_alloc")])
def test_other_errors_are_none_of_memory(error):
    assert not is_out_of_memory(error)
