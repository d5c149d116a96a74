"""Which tests run in which process.

gpu            needs a CUDA GPU; skipped without one
interpreter    runs kernels in Triton's interpreter, on the CPU. Triton must be imported with TRITON_INTERPRET=1 for
               that, and compiles nothing afterwards; so a process runs either these tests or all others.
               tests/test_interpreter.py runs them from an ordinary pytest; alone: TRITON_INTERPRET=1 pytest PATH
"""

import os

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


# Tensors here are tiny: on two busy cores, threads that wait for each other made 250 s of what takes 7.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreter: runs kernels in Triton's interpreter; see tests/conftest.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="needs a CUDA GPU")
    elsewhere = pytest.mark.skip(reason="run by tests/test_interpreter.py; alone: TRITON_INTERPRET=1 pytest PATH")
    compiles = pytest.mark.skip(reason="does not run in the interpreter: unset TRITON_INTERPRET")
    has_gpu = torch.cuda.is_available()
    for item in items:
        is_interpreted = item.get_closest_marker("interpreter") is not None
        if is_interpreted and not INTERPRETING:
            item.add_marker(elsewhere)
        elif INTERPRETING and not is_interpreted:
            item.add_marker(compiles)
        elif item.get_closest_marker("gpu") is not None and not has_gpu:
            item.add_marker(no_gpu)
