"""What the fused kernels do on a GPU: numerics, timings, models, scaling and peers. Run `python -m benchmarks.gpu`."""
