"""From products of queries and keys to logits, and from gradients of logits back."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Logits:
    """How logits come from products of queries and keys, before a bias is added: a product times scale, softly capped.

    A soft cap c makes c * tanh(x / c) of a logit x (arXiv 1611.09940; Gemma 2, 2408.00118, section 2).

    Attributes:
        scale: of products.
        soft_cap: above 0; None for none.
    """

    scale: float
    soft_cap: float | None = None

    def __call__(self, products):
        """Returns logits of products."""
        logits = products * self.scale
        return logits if self.soft_cap is None else self.soft_cap * jnp.tanh(logits / self.soft_cap)

    def gradient(self, d_logits, logits):
        """Returns the gradient of products."""
        if self.soft_cap is not None:
            d_logits = d_logits * (1 - (logits / self.soft_cap) ** 2)
        return d_logits * self.scale
