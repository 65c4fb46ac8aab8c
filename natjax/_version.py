"""The one place that states natjax's version."""

__version__ = "0.1.0"
