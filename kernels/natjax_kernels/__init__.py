"""Neighborhood attention for JAX: one op, its reference and its implementations."""

from natjax_kernels.api import (
    default_implementation,
    explain,
    neighborhood_attention,
    neighborhood_attention_with_weights,
)
from natjax_kernels.merge import merge_attentions
from natjax_kernels.neighbors import neighbors

__all__ = [
    "default_implementation",
    "explain",
    "merge_attentions",
    "neighborhood_attention",
    "neighborhood_attention_with_weights",
    "neighbors",
]
