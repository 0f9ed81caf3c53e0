"""What every test runs under. Subprocesses inherit the environment; a value that is already set is left alone."""

import os

# Set before anything imports numpy, torch or faiss: they read it once.
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # one order of summation on any machine, and tests that can run side by side
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warns when a process that used its threads forks
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test fetches a model; one that tries fails at once

import pytest
from hypothesis import settings

# A failure must be the same failure on the next run; `--hypothesis-profile=explore` looks at new examples.
# No deadline: on a shared machine it measures the neighbours, and every test has a timeout.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("same")


@pytest.fixture
def anyio_backend() -> str:
    """Without it anyio's plugin runs each async test on trio too; those that concern both loops say so themselves."""
    return "asyncio"
