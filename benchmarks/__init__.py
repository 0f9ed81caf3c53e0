"""What sona claims, measured: one ``bench_<claim>.py`` a claim, all of them run by ``python -m benchmarks``."""

import os

# Before anything imports torch, which reads it once: sums in one order, and figures that tell of one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
