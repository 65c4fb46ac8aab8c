"""Draws docs/scaling.png from the cost model: `PYTHONPATH=. python docs/draw_scaling.py`.

Efficiency of training by the number of devices, a panel per machine. A band reaches from exchanges that computing waits for to
those that every layer hides.
"""

import math
import pathlib

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from benchmarks.scaling.__main__ import OF_IMAGES, OF_WEATHER
from benchmarks.scaling.costs import cost
from benchmarks.scaling.machines import DEVICES, MACHINES
from benchmarks.scaling.work import nat, weather
from natjax.presets import get_config

INK, GREY, RULE = "#1b1f24", "#8a949e", "#e3e6ea"
WIDTH, HEIGHT, LEFT, TOP, GAP, SHARP = 400, 260, 60, 90, 70, 2  # pixels, but the last: times as fine while drawing


def curves():
    """Yields name, dark and pale colour, layers and layouts of what is drawn."""
    tiny = get_config("nat_tiny")
    yield "weather, 13 x 721 x 1440 tokens", "#047857", "#cdeee2", list(weather()), OF_WEATHER["parts"]
    for side, dark, pale in ((32768, "#1d4ed8", "#d5e0fb"), (8192, "#c2410c", "#fbdccb")):
        yield f"NAT-Tiny, {side} x {side} pixels", dark, pale, list(nat(tiny, (side, side))), OF_IMAGES["squares"]


def main():
    size = LEFT + 2 * WIDTH + GAP + 30, TOP + HEIGHT + 60
    picture = PIL.Image.new("RGB", (SHARP * size[0], SHARP * size[1]), "white")
    pen = PIL.ImageDraw.Draw(picture)

    def text(x, y, content, colour=INK, size=15, anchor="la"):
        pen.text((SHARP * x, SHARP * y), content, colour, PIL.ImageFont.load_default(SHARP * size), anchor)

    text(LEFT, 14, "Efficiency of training: time on one device over time on n, times n", size=17)
    for i, (name, dark, *_) in enumerate(curves()):
        text(LEFT + 270 * i, 44, name, dark)
    for panel, machine in enumerate(MACHINES):
        left = LEFT + panel * (WIDTH + GAP)

        def place(devices, efficiency, left=left):
            x = left + WIDTH * math.log2(devices) / math.log2(DEVICES[-1])
            return SHARP * x, SHARP * (TOP + HEIGHT * (1 - efficiency))

        for share in (0, 0.25, 0.5, 0.75, 1):
            pen.line([place(1, share), place(DEVICES[-1], share)], RULE, SHARP)
            text(left - 8, TOP + HEIGHT * (1 - share), f"{share:.0%}", GREY, 13, "rm")
        for devices in DEVICES:
            text(place(devices, 0)[0] / SHARP, TOP + HEIGHT + 8, str(devices), GREY, 13, "ma")
        text(left + WIDTH / 2, TOP + HEIGHT + 30, f"{machine.name}, devices", anchor="ma")
        found = []
        for _, dark, pale, works, layout in curves():
            alone = cost(works, layout(1), machine, train=True).apart
            costs = [(n, cost(works, layout(n), machine, train=True)) for n in machine.counts]
            apart = [place(n, alone / n / c.apart) for n, c in costs]
            overlapped = [place(n, alone / n / c.overlapped) for n, c in costs]
            found.append((dark, apart, overlapped))
            pen.polygon([*apart, *reversed(overlapped)], pale)
        for dark, *edges in found:
            for edge in edges:
                pen.line(edge, dark, 2 * SHARP, joint="curve")
    picture.resize(size, PIL.Image.Resampling.BOX).save(pathlib.Path(__file__).with_name("scaling.png"), optimize=True)


if __name__ == "__main__":
    main()
