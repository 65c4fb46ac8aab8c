"""`python -m natjax` is the `natjax` command."""

import sys

from natjax.cli import main

sys.exit(main())
