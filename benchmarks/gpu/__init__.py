"""What the fused kernels do on a GPU, from numerics to peers. Run `python -m benchmarks.gpu`."""
