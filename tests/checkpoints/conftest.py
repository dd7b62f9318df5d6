"""The tests here share helpers (`small.py`, the attacks of `test_pickles.py`) by plain import."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
