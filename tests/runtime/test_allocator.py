import subprocess
import sys

import pytest

CODE = """
import os
from danqing.runtime.allocator import keep_memory
keep_memory()
assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
import resource, torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(12 << 20)
before = faults()
for _ in range(4):
    torch.zeros(12 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_what_is_freed_is_kept_for_the_next_tensor() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 10_000  # four times 48 MB in pages of 4 KB would be 49,152
