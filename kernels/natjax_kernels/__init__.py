"""Neighborhood attention for JAX: one op, its reference and its implementations."""
