"""Makes the modules of this folder importable: each is also a command that refreshes a table of docs/kernels.md."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
