"""Examples of several devices, each in a process that has eight of them."""

import os
import pathlib
import subprocess
import sys

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

WEATHER = """
results = main(["--grid", "16", "48", "--steps", "60"])
assert results["error of the forecast"] < results["error of no change"] / 3
assert results["largest difference from one device"] < 1e-5
assert results["largest difference on a turned globe"] < 1e-5
"""

LARGE_IMAGE = """
results = main([])
assert results["difference from one device"] < 1e-5
assert results["memory of each of 8 devices (MB)"] < results["memory of one device (MB)"] / 6
"""


def test_weather_on_a_ring_of_devices():
    run("weather.py", WEATHER)


def test_an_image_over_eight_devices():
    run("large_image.py", LARGE_IMAGE)


def run(example, code):
    """Runs an example's functions in a process of its own."""
    code = f"import runpy; globals().update(runpy.run_path({str(EXAMPLES / example)!r}))\n{code}"
    more = {"JAX_NUM_CPU_DEVICES": "8"}
    result = subprocess.run([sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
