"""What ``bench_optimizers`` measures, a part each."""
