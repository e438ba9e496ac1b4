import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    torch.set_num_threads(2)
