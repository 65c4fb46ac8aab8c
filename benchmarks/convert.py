"""Times conversion of a checkpoint and its memory: prints rows, writes results/convert_cpu.json; a minute, 3 GB of disk.

The checkpoint is a synthetic DiNAT-Large (200 M parameters, 804 MB in float32), in both containers, converted to either dialect
in a process of its own, and loaded as a model. Anonymous memory (sampled every 2 ms) is what the process holds; resident memory
also counts the pages of the source file that are mapped, which the system can drop at any time.
"""

import argparse
import functools
import itertools
import pathlib
import shutil
import tempfile
import threading
import time

import numpy as np

from benchmarks.harness import RESULTS, Worker, memory, write
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


def convert(to, source, destination):
    """Converts or loads once; returns that, and its seconds and peaks of memory beyond what the imports hold."""
    import natjax
    import natjax_convert

    if to == "model":
        run = functools.partial(natjax.NatForImageClassification.from_pretrained, source)
    else:
        run = functools.partial(natjax_convert.convert, source, destination, to=to)
    before, peak, done = memory("RssAnon"), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return run, {
        "seconds": round(seconds, 2),
        "peak_anonymous_megabytes": round((peak - before) / 1e6),
        "anonymous_megabytes_of_imports": round(before / 1e6),
        "peak_resident_megabytes": round(memory("VmHWM") / 1e6),
    }


def main():
    argparse.ArgumentParser(prog="python -m benchmarks.convert", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        size, cases, out = synthesise(directory), [], directory / "out"
        for to, container in itertools.product(("hf", "shilabs", "model"), FILES):
            with Worker(convert, to, str(directory / container), str(out)) as worker:
                cases.append({"source": container, "to": to, **worker.row})
            print(cases[-1], flush=True)
            for path in directory.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    origin = {"provenance": provenance(note="source in the page cache"), "preset": PRESET}
    write(RESULTS / "convert_cpu.json", origin | {"weights_megabytes": round(size / 1e6), "cases": cases})


if __name__ == "__main__":
    main()
