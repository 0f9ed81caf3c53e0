"""What ``bench_bank`` measures, part by part."""
