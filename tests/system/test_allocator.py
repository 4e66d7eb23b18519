import subprocess
import sys

import pytest

CODE = """
import psutil, torch
from common.system.allocator import give_freed_memory_back, keep_freed_memory
memory = lambda: psutil.Process().memory_info().rss / 1e6
keep_freed_memory()
before = memory()
torch.ones(100_000_000)
kept = memory() - before
give_freed_memory_back()
print(kept, memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_kept_until_it_is_given_back():
    """In a process of its own: the allocator stays as it was set."""
    process = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    kept, given_back = map(float, process.stdout.split())
    assert kept > 350
    assert given_back < 50
