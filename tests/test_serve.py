"""The serving example as a process of its own, with a real client: results, limits, hostile images, a stop under load."""

import asyncio
import base64
import concurrent.futures
import contextlib
import io
import os
import pathlib
import re
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
import zlib

import httpx
import numpy as np
import PIL.Image
import pytest

import natjax

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).parents[1]
SERVE = ROOT / "examples" / "serve.py"
DIGITS = sorted((ROOT / "natjax/demo/digits").glob("digit_*.png"))
PNG = {"Content-Type": "image/png"}
MAX_BYTES, MAX_PIXELS = 100_000, 1_000_000


@contextlib.contextmanager
def serving(*arguments):
    """Serves the digits on a free port; yields the process and its address."""
    command = [sys.executable, SERVE, "--model", "digits", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    log = []
    try:
        for line in process.stderr:
            log.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError("".join(log))
        rest = threading.Thread(target=lambda: log.extend(process.stderr))  # a full pipe would stop the server
        rest.start()
        yield process, match[0]
        process.terminate()
        process.wait(30)
        rest.join()
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stderr.close()
    assert "Traceback" not in "".join(log)


@pytest.fixture(scope="module")
def client():
    limits = ("--max-bytes", str(MAX_BYTES), "--max-pixels", str(MAX_PIXELS), "--batch-size", "4")
    with serving(*limits) as (_, address), httpx.Client(base_url=address, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def expected():
    """What the pipeline says of the ten digits."""
    return natjax.pipeline("image-classification", "digits")([str(path) for path in DIGITS])


def assert_close(result, wanted):
    assert [row["label"] for row in result] == [row["label"] for row in wanted]
    np.testing.assert_allclose([row["score"] for row in result], [row["score"] for row in wanted], atol=1e-6)


def test_results_are_those_of_the_pipeline(client, expected):
    assert client.get("/health").json() == {"status": "ok", "waiting": 0, "natjax": natjax.__version__}
    for path, wanted in zip(DIGITS, expected, strict=True):
        answer = client.post("/predict", content=path.read_bytes(), headers=PNG)
        assert answer.status_code == 200
        assert_close(answer.json()["result"], wanted)


def test_requests_at_a_time_each_get_their_own_result(client, expected):
    files = [path.read_bytes() for path in DIGITS] * 3
    with concurrent.futures.ThreadPoolExecutor(len(files)) as pool:
        answers = list(pool.map(lambda file: client.post("/predict", content=file, headers=PNG), files))
    for answer, wanted in zip(answers, expected * 3, strict=True):
        assert answer.status_code == 200
        assert_close(answer.json()["result"], wanted)


def png(width, height, pixels=b""):
    """Returns a PNG that says it is grey and so large, whatever its pixels are."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def jpeg():
    file = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).save(file, "JPEG")
    return file.getvalue()


HOSTILE = {
    "empty": (b"", "empty"),
    "text": (b"/etc/passwd", "not an image"),
    "page": (b"<html></html>", "a web page"),
    "document": (b"%PDF-1.7", "PDF"),
    "zeros": (bytes(1000), "not an image"),
    "noise": (np.random.default_rng(0).bytes(5000), "not an image"),
    "truncated PNG": (DIGITS[0].read_bytes()[:-30], "The image"),
    "truncated JPEG": (jpeg()[:700], "The image"),
    "signature alone": (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
    "pixels that are not there": (png(100, 100), "The image"),
    "bomb by its header": (png(60_000, 60_000), "too large to decode safely"),
    "bomb that unfolds": (png(5000, 5000, bytes(5001 * 5000)), "too large to decode safely"),
    "a column": (png(1, 900_000, bytes(2 * 900_000)), "1 x 900000 pixels; a side may have 16384"),
    "a row": (png(900_000, 1, bytes(900_001)), "900000 x 1 pixels; a side may have 16384"),
    "no pixels": (png(0, 10), "The image"),
}


@pytest.mark.parametrize(("file", "message"), HOSTILE.values(), ids=HOSTILE)
def test_images_that_cannot_be_read(client, file, message):
    answer = client.post("/predict", content=file, headers=PNG)
    assert (answer.status_code, list(answer.json())) == (422, ["error"])
    assert message in answer.json()["error"]


def test_a_bad_image_among_good_ones_spoils_none(client, expected):
    files = [DIGITS[3].read_bytes(), *(file for file, _ in HOSTILE.values())] * 2
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda file: client.post("/predict", content=file, headers=PNG), files))
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, *[422] * len(HOSTILE)] * 2
    assert_close(answers[0].json()["result"], expected[3])


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/predict", {"json": {"image": "digit.png"}}, 415),
        ("POST", "/predict", {"files": {"image": b"..."}}, 415),
        ("POST", "/predict", {"data": {"image": "..."}}, 415),
        ("POST", "/predict", {"content": bytes(MAX_BYTES + 1)}, 413),
        ("POST", "/predict", {"content": iter([bytes(MAX_BYTES // 2)] * 3)}, 413),  # in chunks, of no declared length
        ("GET", "/predict", {}, 405),
        ("POST", "/health", {}, 405),
        ("GET", "/../etc/passwd", {}, 404),
    ],
)
def test_requests_that_are_refused(client, method, path, options, status):
    answer = client.request(method, path, **options)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_a_client_that_leaves_early(client):
    address = (client.base_url.host, client.base_url.port)
    for request in (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc", b"\x16\x03\x01", b""):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(request)
    answer = client.post("/predict", content=DIGITS[0].read_bytes(), headers=PNG)
    assert answer.status_code == 200
    assert client.get("/health").json()["waiting"] <= 1  # the one that left may not be noticed yet


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking them")
def test_a_stop_answers_what_was_sent():
    """The other half of a request arrives after SIGTERM: it is answered, no other is, and the server ends."""
    file = DIGITS[7].read_bytes()
    with serving("--batch-size", "1", "--max-waiting", "1") as (process, address):
        host, port = httpx.URL(address).host, httpx.URL(address).port
        with socket.create_connection((host, port), timeout=30) as connection:
            connection.sendall(
                f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(file)}\r\n\r\n".encode() + file[:50]
            )
            while httpx.get(f"{address}/health").json()["waiting"] != 1:
                pass
            busy = httpx.post(f"{address}/predict", content=file)
            assert (busy.status_code, busy.headers["retry-after"], list(busy.json())) == (503, "1", ["error"])
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(httpx.HTTPError):
                while httpx.get(f"{address}/health"):
                    pass
            connection.sendall(file[50:])
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"label": "7"' in answer
        assert process.wait(30) in (0, -signal.SIGTERM)


def test_what_waits_is_one_batch_and_errors_find_their_image():
    """While the model answers the first image, five more arrive, of which one is bad: they are batches of four and one."""
    batches, begun, go_on = [], threading.Event(), threading.Event()

    def pipeline(images):
        batches.append(images)
        begun.set()
        assert go_on.wait(10)
        if "bad" in images:
            raise natjax.ImageError("bad")
        return [image.upper() for image in images]

    async def run():
        batcher = runpy.run_path(str(SERVE))["Batcher"](pipeline, 4)
        running = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher("a"))
        await asyncio.to_thread(begun.wait, 10)
        others = [asyncio.create_task(batcher(image)) for image in ("b", "bad", "c", "d", "e")]
        await asyncio.sleep(0)
        go_on.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        running.cancel()
        return results

    results = asyncio.run(run())
    assert [str(result) for result in results] == ["A", "B", "bad", "C", "D", "E"]
    assert batches == [["a"], ["b", "bad", "c", "d"], ["b"], ["bad"], ["c"], ["d"], ["e"]]


def test_results_of_all_tasks_are_json():
    """A pipeline of all kinds of results is compiled for 1, 2 and 3 images, then answers; its failure is status 500."""
    mask = PIL.Image.effect_noise((8, 6), 100)
    result = [{"label": "sky", "score": None, "mask": mask}, np.array([0.5, 2], np.float32), np.float32(0.25)]
    sizes = []

    class Pipeline:
        batch_size = 3
        processor = types.SimpleNamespace(mode="RGB")

        def __call__(self, images):
            sizes.append(len(images))
            if images[0].size == (1, 1):
                raise RuntimeError("out of memory")
            return [result] * len(images)

    app = runpy.run_path(str(SERVE))["application"](Pipeline(), max_bytes=MAX_BYTES, max_waiting=2)

    async def run():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return [await client.post("/predict", content=png(side, side, bytes(20))) for side in (2, 1)]

    answer, failure = asyncio.run(run())
    assert sizes == [1, 2, 3, 1, 1]
    (segment, features, score) = answer.json()["result"]
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(segment.pop("mask"))))
    assert shown.tobytes() == mask.tobytes()
    assert (segment, features, score) == ({"label": "sky", "score": None}, [0.5, 2.0], 0.25)
    assert (failure.status_code, failure.json()) == (500, {"error": "The server failed; its log says why."})


def test_an_image_that_comes_too_slowly():
    serve = runpy.run_path(str(SERVE))
    serve["body"].__globals__["BODY_SECONDS"] = 0.01

    async def receive():
        await asyncio.sleep(10)

    request = serve["Request"]({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(serve["HTTPException"]) as refusal:
        asyncio.run(serve["body"](request, MAX_BYTES))
    assert refusal.value.status_code == 408
