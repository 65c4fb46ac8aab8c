"""Neighborhood attention by fused Triton kernels, for NVIDIA GPUs."""

from natjax_kernels.triton.op import attend

__all__ = ["attend"]
