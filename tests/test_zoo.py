"""docs/zoo.md is what docs/write_zoo.py makes of the presets."""

import pathlib
import runpy

import pytest

pytestmark = pytest.mark.once
DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_the_model_zoo_is_current():
    page = runpy.run_path(str(DOCS / "write_zoo.py"))["page"]()
    assert (DOCS / "zoo.md").read_text(encoding="utf-8") == page, "run `python docs/write_zoo.py`"
