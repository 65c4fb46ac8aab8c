"""Neighborhood attention by fused Triton kernels, for NVIDIA GPUs; Triton itself is imported when a kernel is launched."""

from natjax_kernels.triton.op import attend
from natjax_kernels.triton.support import why_not

__all__ = ["attend", "why_not"]
