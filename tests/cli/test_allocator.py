"""What the C library does with freed memory, in a process of its own: its settings last."""

import subprocess
import sys

import pytest

SCRIPT = """
import psutil
from lightning_gpt.cli.allocator import keep_freed_memory, return_large_blocks

def left_mib(size):
    before = psutil.Process().memory_info().rss
    block = bytearray(b"x") * (size << 20)
    held = psutil.Process().memory_info().rss - before
    assert held > 90 << 20
    del block
    return (psutil.Process().memory_info().rss - before) >> 20

assert keep_freed_memory()
kept = left_mib(100)
assert return_large_blocks()
print(kept, left_mib(400))  # larger than what is kept, which would hold it
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_freed_memory_is_kept_until_sharding_wants_it_returned():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())
    assert kept > 90
    assert returned < 10
