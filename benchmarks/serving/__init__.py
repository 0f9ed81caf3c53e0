"""What ``bench_serving`` measures, a part each."""
