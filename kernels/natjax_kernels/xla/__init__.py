"""Neighborhood attention in XLA operations: for CPU, TPU and every GPU without a fused kernel."""

from natjax_kernels.xla.op import attend

__all__ = ["attend"]
