"""What all tests share: one thread setting, and a stub of torchvision for the references that import it."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def one_thread(_threads: None) -> Iterator[None]:
    """Networks this small wait longer for each other's threads than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
