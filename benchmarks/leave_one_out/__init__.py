"""Parts of bench_leave_one_out."""
