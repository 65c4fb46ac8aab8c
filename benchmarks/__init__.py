"""Scripts that produce the figures of the README and of docs/ (benchmarks/README.md), of this tree, whatever is installed."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "convert", "train")]
