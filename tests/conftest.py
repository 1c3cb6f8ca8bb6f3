"""What all tests share: our `tokenize`, also under the `pytest` command, one thread, the same random numbers in any order."""

import engine.threads  # noqa: F401

import pytest
import torch

import vatt  # noqa: F401  where the `pytest` command has imported Python's tokenize, this adds ours to it

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
