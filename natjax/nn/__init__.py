"""Layers and blocks of the models, and what XLA needs to compile them well."""
