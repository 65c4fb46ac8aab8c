"""What spatial sharding costs, on paper: `python -m benchmarks.scaling`."""
