"""What bench_attribution_quality measures: facts whose importance is known, and who finds it."""
