"""What ``bench_micro`` measures, a part each."""
