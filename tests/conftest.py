"""What several files of tests use."""
import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    "Networks as small as those of the tests are slower with two threads, and much slower beside other programs."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
