"""Draws docs/kernels.png from the layout that the fused kernels read: `python docs/draw_kernels.py`.

Left: a map of 28 x 28 tokens in tiles of 7 x 7, coloured by class, with a tile, its halo and a query's window. Right: the
table of that tile, [queries, keys], in the chunks in which a program works on it; dark where a query has a neighbour.
"""

import math
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from natjax_kernels.bias import MASKED, bias_table
from natjax_kernels.fused.layout import layout
from natjax_kernels.window import Window

SIDE, KERNEL, TILE, CHUNK = 28, 7, 7, 64
CELL, MARGIN, GAP, TOP = 20, 30, 70, 60
INK, TILE_INK, HALO_INK, WINDOW_INK = "#1b1f24", "#c2410c", "#1d4ed8", "#047857"
CLASSES = ["#fde2d3", "#e3ecfb", "#dff3ea", "#f4e6f7", "#f6f6f2", "#fbf1cf", "#e1f3f5", "#fbe0e6", "#e9e6fa"]


def main():
    plan = layout((SIDE, SIDE), Window((KERNEL,) * 2, (1, 1), (1, 1), (False, False)), (TILE, TILE), None)
    table = np.asarray(bias_table(plan.relative, None, "float32"))[:, 0] > MASKED / 2  # [rows, T, S]
    halo_height, halo_width = plan.block[1:]
    chunks = math.ceil(halo_height * halo_width / CHUNK)
    table_cell = (SIDE * CELL - (chunks - 1) * 40) // (chunks * TILE * TILE)
    cell_x = 6
    width = MARGIN + SIDE * CELL + GAP + CHUNK * cell_x + MARGIN
    picture = PIL.Image.new("RGB", (width, TOP + SIDE * CELL + 130), "white")
    draw = PIL.ImageDraw.Draw(picture)
    font, small = PIL.ImageFont.load_default(18), PIL.ImageFont.load_default(14)

    def box(first_row, first_column, rows, columns, **style):
        x, y = MARGIN + first_column * CELL, TOP + first_row * CELL
        draw.rectangle((x, y, x + columns * CELL, y + rows * CELL), **style)

    chosen = None
    for query, key, tile_class, _, rows, columns in plan.tiles:
        row, column = divmod(int(query), SIDE)
        box(row, column, rows, columns, fill=CLASSES[tile_class % len(CLASSES)], outline="#9aa4af")
        if (row, column) == (TILE, 2 * TILE):
            chosen = (row, column, *divmod(int(key), SIDE), tile_class)
    row, column, halo_row, halo_column, tile_class = chosen
    for y in range(SIDE):
        for x in range(SIDE):
            centre = MARGIN + (x + 0.5) * CELL, TOP + (y + 0.5) * CELL
            draw.ellipse((centre[0] - 2, centre[1] - 2, centre[0] + 2, centre[1] + 2), fill="#8a949e")
    query = 2 * TILE + 5  # a slot of the tile
    query_row, query_column = row + query // TILE, column + query % TILE
    box(query_row - 3, query_column - 3, KERNEL, KERNEL, outline=WINDOW_INK, width=4)
    box(halo_row, halo_column, halo_height, halo_width, outline=HALO_INK, width=4)
    box(row, column, TILE, TILE, outline=TILE_INK, width=4)
    box(query_row, query_column, 1, 1, fill=WINDOW_INK)

    draw.text((MARGIN, 20), f"A map of {SIDE} x {SIDE} tokens, kernel {KERNEL}, in tiles of {TILE} x {TILE}", INK, font)
    y = TOP + SIDE * CELL + 12
    for text, ink in (
        (f"tile: {TILE * TILE} queries, a program's, in {1 << (TILE * TILE - 1).bit_length()} slots", TILE_INK),
        (f"halo: the {halo_height} x {halo_width} = {halo_height * halo_width} keys that any of them sees", HALO_INK),
        (f"window of one query: {KERNEL} x {KERNEL} keys", WINDOW_INK),
        (f"colours: {len(set(plan.tiles[:, 2]))} classes; tiles of one class share a table", INK),
    ):
        draw.text((MARGIN, y), text, ink, small)
        y += 24

    left = MARGIN + SIDE * CELL + GAP
    draw.text((left, 20), "Its table, in chunks of 64 keys", INK, font)
    pairs = table[plan.rows[tile_class, 0]]
    height = max(2, table_cell)
    for chunk in range(chunks):
        top = TOP + chunk * (TILE * TILE * height + 40)
        for t in range(TILE * TILE):
            for s in range(CHUNK):
                key = chunk * CHUNK + s
                inside = key < pairs.shape[1]
                ink = (WINDOW_INK if t == query else "#3f5f8f") if inside and pairs[t, key] else "#edf0f3"
                x, y = left + s * cell_x, top + t * height
                draw.rectangle((x, y, x + cell_x - 1, y + height - 1), fill=ink if inside else "#ffffff")
        last = min((chunk + 1) * CHUNK, pairs.shape[1])
        text = f"keys {chunk * CHUNK} to {last - 1}: {pairs[:, chunk * CHUNK : last].mean():.0%} are neighbours"
        draw.text((left, top + TILE * TILE * height + 6), text, INK, small)
    picture.save(pathlib.Path(__file__).with_name("kernels.png"), optimize=True)


if __name__ == "__main__":
    main()
