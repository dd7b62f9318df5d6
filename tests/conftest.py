"""What all tests share: one thread setting, and a stub of torchvision for the references that import it."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(2)
