"""PyTorch checkpoints of NAT and DiNAT to Flax parameters and back, without PyTorch."""
