"""Neighborhood attention for JAX: one op, its reference and its implementations."""

from natjax_kernels.api import (
    default_implementation,
    explain,
    neighborhood_attention,
    neighborhood_attention_with_weights,
)

__all__ = ["default_implementation", "explain", "neighborhood_attention", "neighborhood_attention_with_weights"]
