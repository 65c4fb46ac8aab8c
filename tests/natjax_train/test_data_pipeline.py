"""What must not change a run or end it badly: other workers on resumption, threads beside the main one, lost disks, exits."""

import io
import json
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

from natjax.errors import ImageError
from natjax_train.augment.settings import HostSettings
from natjax_train.data import ImageFolder, train_loader
from natjax_train.data.transforms import decode

SETTINGS = HostSettings(image_mean=(0.5,), image_std=(0.5,))
WORKERS = [(0, "threads"), (3, "threads"), (1, "processes"), (2, "processes")]


def png(seed, side=20):
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def folder(path, unreadable=()):
    for i in range(24):
        file = path / f"class {i % 3}" / f"{i:02d}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"no image" if i in unreadable else png(i))
    return ImageFolder(path)


def loader(source, workers=0, worker_kind="threads", **options):
    options = {
        "batch_size": 6,
        "image_size": 16,
        "num_channels": 3,
        "augmentation": SETTINGS,
        "seed": 1,
        "max_corrupt": 3,
    } | options
    return train_loader(source, workers=workers, worker_kind=worker_kind, **options)


def test_runs_go_on_with_other_workers(tmp_path):
    source = folder(tmp_path)
    batches = loader(source)
    whole = [next(batches) for _ in range(7)]
    states = []
    for workers in WORKERS:
        batches = loader(source, *workers)
        for _ in range(5):
            next(batches)
        states.append(json.loads(json.dumps(batches.get_state())))
        batches.close()
    assert states == [states[0]] * len(WORKERS)
    for workers in WORKERS:
        batches = loader(source, *workers)
        batches.set_state(states[0])
        for want in whole[5:]:
            got = next(batches)
            assert all((got[key] == want[key]).all() for key in want)
        batches.close()


def test_runs_go_on_with_other_processes(tmp_path):
    source = folder(tmp_path, unreadable=[3, 4])
    whole, batches = [], loader(source)
    for _ in range(8):
        whole.append(next(batches)["image"])
    parts = [loader(source, share=i, shares=3) for i in range(3)]
    for part in parts:
        for _ in range(4):  # an epoch, in which both unreadable images turn up
            next(part)
    state = parts[0].join_states([part.get_state() for part in parts])
    assert state["unreadable"] == sorted(batches.unreadable)
    for count in (1, 2):
        parts = [loader(source, share=i, shares=count) for i in range(count)]
        for part in parts:
            part.set_state(state)
        for want in whole[4:]:
            np.testing.assert_array_equal(np.concatenate([next(part)["image"] for part in parts]), want)


def test_images_that_were_mended_do_not_end_a_run_that_may_skip_none(tmp_path):
    source = folder(tmp_path, unreadable=[3])
    batches = loader(source)
    while not batches.unreadable:
        next(batches)
    strict = {"max_corrupt": 0, "advice": "Mend them."}
    again = loader(source, **strict)
    again.set_state(batches.get_state())
    with pytest.raises(ImageError, match=r"^Images cannot be read: .*03.png \(not an image .*\)\. Mend them\."):
        take_two_epochs(again)
    (tmp_path / "class 0" / "03.png").write_bytes(png(3))
    again = loader(source, **strict)
    again.set_state(batches.get_state())
    take_two_epochs(again)


def take_two_epochs(batches):
    for _ in range(8):
        next(batches)


def test_decoding_in_threads_leaves_warnings_alone():
    images, before = [png(i, 100) for i in range(8)], list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: decode(images[i % 8], 3), range(400)))
    assert warnings.filters == before


@pytest.mark.parametrize("workers", [(0, "threads"), (2, "processes")])
def test_a_lost_disk_is_not_searched_to_its_end(tmp_path, workers):
    source = folder(tmp_path, unreadable=range(24))
    batches = loader(source, *workers)
    with pytest.raises(
        ImageError, match=r"^More than 3 images cannot be read: .*/class \d/\d\d.png \(not an image that"
    ):
        next(batches)
    batches.close()


@pytest.mark.parametrize("workers", [(0, "threads"), (2, "processes")])
def test_reasons_are_told(tmp_path, workers):
    source, said = folder(tmp_path, unreadable=[3]), []
    (tmp_path / "class 1" / "04.png").write_bytes(png(4)[:400])
    PIL.Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "class 0" / "06.png", "tiff")
    batches = loader(source, *workers, report=said.append)
    for _ in range(4):
        next(batches)
    batches.close()
    beginning = r" cannot be read, skipped: "
    reasons = {text.split(beginning)[0][-6:]: text.split(beginning)[1] for text in said}
    assert reasons.keys() == {"03.png", "04.png", "06.png"}
    assert reasons["03.png"] == "not an image that Pillow can read."
    assert "truncated" in reasons["04.png"]
    assert reasons["06.png"].startswith(
        "floating point pixels, 0.5..0.5 in this image, do not say which value is white"
    )


def test_reads_end_with_the_limit(tmp_path, monkeypatch):
    source, reads = folder(tmp_path, unreadable=range(24)), []
    monkeypatch.setattr(ImageFolder, "__getitem__", lambda self, i: reads.append(i) or {"image": b"", "label": 0})
    with pytest.raises(ImageError, match="cannot be read"):
        next(loader(source))
    assert len(reads) == 4


def test_files_that_vanish_are_counted_too(tmp_path):
    source = folder(tmp_path)
    (tmp_path / "class 0" / "03.png").unlink()
    batches = loader(source)
    for _ in range(4):
        assert next(batches)["image"].shape == (6, 16, 16, 3)
    assert [source.name(i)[-6:] for i in batches.unreadable] == ["03.png"]


def test_kinds_of_workers_are_checked(tmp_path):
    with pytest.raises(ValueError, match="'threads' or 'processes'; got 'fibres'"):
        loader(folder(tmp_path), 2, "fibres")


EXITS = """
import sys, pathlib
from tests_of_data import folder, loader
if __name__ == "__main__":
    batches = loader(folder(pathlib.Path(sys.argv[1])), 2, sys.argv[2])
    next(batches)
    batches.close()
"""


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_programs_end_quietly(tmp_path, kind):
    (tmp_path / "images").mkdir()
    shutil.copy(__file__, tmp_path / "tests_of_data.py")
    (tmp_path / "program.py").write_text(EXITS)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "images"), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


def test_a_missing_package_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"more packages \(.*grain.*pip install '\.\[train\]'"):
        loader(folder(tmp_path))
