"""Writes a small set of photographs as a folder to train on: is there a face in it? For docs/photographs.md.

    pip install scikit-image
    python examples/photographs.py photographs/0 --split 0

The 200 images are scikit-image's `lfw_subset` (25 x 25 pixels, grey; from Labeled Faces in the Wild, University of Massachusetts,
Amherst, 2007): 100 faces and 100 pieces of the same kind of photograph without one. A split draws some of each class at random
to train on and leaves all others for validation.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image
from skimage import data


def main() -> None:
    """Writes the folder that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--split", type=int, default=0, help="which random images to draw")
    parser.add_argument(
        "--train", type=int, default=50, metavar="N", help="images of each class to train on (default: 50)"
    )
    arguments = parser.parse_args()

    images = np.round(data.lfw_subset() * 255).astype(np.uint8)  # [200, 25, 25], faces first
    rng = np.random.default_rng(arguments.split)
    for name, members in (("face", images[:100]), ("other", images[100:])):
        order = rng.permutation(len(members))
        for part, chosen in (("train", order[: arguments.train]), ("val", order[arguments.train :])):
            folder = arguments.out / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in chosen:
                Image.fromarray(members[number]).save(folder / f"{number:03}.png")
    count = 2 * arguments.train
    print(f"{arguments.out}: {count} images to train on and {200 - count} to validate with, of faces and others.")


if __name__ == "__main__":
    main()
