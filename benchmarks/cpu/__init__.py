"""natjax and its peers on a CPU: `python -m benchmarks.cpu`."""
