"""The parts of ``bench_fast_loop``."""
