"""Draws docs/neighborhoods.png from the op's own attention weights: `python docs/draw_neighborhoods.py`.

Every panel is one call of the op on a map of 14 x 14 tokens whose queries are zero, so that a query spreads its attention evenly
over the tokens it sees. These are coloured, the query is dark.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

import natjax

SIDE, CELL, MARGIN, TOP, SCALE = 14, 16, 24, 62, 2  # drawn at twice the size for sharp text
INK, QUIET, GRID, QUERY = "#1b1f24", "#57606a", "#d0d7de", "#0b3d2e"
PANELS = (
    ("Neighborhood", "kernel 7", (6, 6), {"kernel_size": 7}, "#7dd3ae"),
    ("At a border", "the window shifts inward", (1, 12), {"kernel_size": 7}, "#7dd3ae"),
    ("Dilated", "kernel 5, dilation 2", (6, 6), {"kernel_size": 5, "dilation": 2}, "#93b8f8"),
    ("Causal rows", "kernel 5 x 7", (6, 6), {"kernel_size": (5, 7), "is_causal": (True, False)}, "#f5b98a"),
)


def main():
    side = SIDE * CELL
    width = MARGIN + len(PANELS) * (side + MARGIN)
    picture = PIL.Image.new("RGB", (width * SCALE, (TOP + side + MARGIN) * SCALE), "white")
    draw = PIL.ImageDraw.Draw(picture)
    title, small = (PIL.ImageFont.load_default(size * SCALE) for size in (16, 13))
    for panel, (name, what, query, arguments, colour) in enumerate(PANELS):
        left = MARGIN + panel * (side + MARGIN)
        draw.text((left * SCALE, 12 * SCALE), name, INK, title)
        draw.text((left * SCALE, 36 * SCALE), what, QUIET, small)
        seen = attended(query, **arguments)
        for y, x in np.ndindex(SIDE, SIDE):
            fill = QUERY if (y, x) == query else colour if seen[y, x] else "#f6f8fa"
            corner = (left + x * CELL) * SCALE, (TOP + y * CELL) * SCALE
            draw.rectangle((*corner, *(c + CELL * SCALE for c in corner)), fill, GRID)
    picture.save(pathlib.Path(__file__).with_name("neighborhoods.png"), optimize=True)


def attended(query, **arguments):
    """Returns which tokens of the map a query attends to, bool [SIDE, SIDE]: where its output depends on the values."""
    nothing = jnp.zeros((1, SIDE, SIDE, 1, SIDE * SIDE))
    value = jnp.eye(SIDE * SIDE).reshape(1, SIDE, SIDE, 1, -1)  # a token's value is its own name
    output = natjax.neighborhood_attention(nothing, nothing, value, **arguments)
    return np.asarray(output[0, *query, 0] > 0).reshape(SIDE, SIDE)


if __name__ == "__main__":
    main()
