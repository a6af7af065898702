"""What the C library keeps of freed tensors."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from pathlib import Path
from distmeta.allocator import freed_at_once

def own():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) / 1024

def kept():
    "MiB that every second of 100 tensors of 1 MiB leaves when it is freed."
    tensors = [torch.ones(2**18) for _ in range(100)]
    before = own()
    del tensors[::2]
    return 50 - (before - own())

with freed_at_once():
    inside = kept()
print(inside, kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_goes_back_inside_and_is_kept_outside():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    inside, outside = map(float, done.stdout.split())
    assert inside < 5
    assert outside > 45
