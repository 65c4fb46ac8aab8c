"""Times conversion of a checkpoint and its memory: prints rows, writes results/convert_cpu.json; a minute, 3 GB of disk.

The checkpoint is a synthetic DiNAT-Large (200 M parameters, 804 MB in float32), in both containers, converted to either dialect
in a process of its own, and loaded as a model. Anonymous memory (RssAnon, sampled every 2 ms) is what the process holds;
ru_maxrss also counts the pages of the source file that are mapped, which the system can drop at any time.
"""

import argparse
import itertools
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from benchmarks.harness import RESULTS, write
from benchmarks.provenance import provenance

PRESET = "dinat_large"
FILES = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}


def synthesise(directory):
    """Writes Hugging Face's config.json and the weights in both containers; returns the bytes of the weights."""
    import natjax
    import natjax_convert
    from natjax_convert.safetensors_file import write_safetensors
    from natjax_convert.torch_zip import write_torch

    config, rng = natjax.get_config(PRESET), np.random.default_rng(0)
    entries = natjax_convert.entries(config)
    tensors = {name: rng.standard_normal(entry.tensor_shape, np.float32) for entry in entries for name in entry.names}
    for container, save in (("safetensors", write_safetensors), ("torch", write_torch)):
        (directory / container).mkdir()
        (directory / container / "config.json").write_text(config.to_json())
        save(directory / container / FILES[container], tensors)
    return sum(values.nbytes for values in tensors.values())


def anonymous_bytes():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def measure(work):
    """Runs `work` in this process; returns its seconds and peaks of memory beyond what the imports hold."""
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {
        "seconds": round(seconds, 2),
        "peak_anonymous_megabytes": round((peak - before) / 1e6),
        "anonymous_megabytes_of_imports": round(before / 1e6),
        "ru_maxrss_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }


def child(source, to, destination):
    import natjax
    import natjax_convert

    if to == "model":
        model = natjax.NatForImageClassification
        return measure(lambda: model.from_pretrained(source))
    return measure(lambda: natjax_convert.convert(source, destination, to=to))


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # one conversion, in this process
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(*args.child)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        size, cases, out = synthesise(directory), [], directory / "out"
        for to, container in itertools.product(("hf", "shilabs", "model"), FILES):
            command = [sys.executable, "-m", "benchmarks.convert", "--child", str(directory / container), to, str(out)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            cases.append({"source": container, "to": to, **json.loads(done.stdout)})
            print(cases[-1], flush=True)
            for path in directory.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    origin = {"provenance": provenance(note="source in the page cache"), "preset": PRESET}
    write(RESULTS / "convert_cpu.json", origin | {"weights_megabytes": round(size / 1e6), "cases": cases})


if __name__ == "__main__":
    main()
