"""What fused GPU kernels share, whatever language they are written in: layout, schedule, configurations."""
