"""Serves a model over HTTP: Starlette on uvicorn, any of natjax's pipelines, requests answered in batches.

    pip install '.[serve]'                                       # in a clone
    python examples/serve.py --model digits --port 8000
    curl -H 'Content-Type: image/png' --data-binary @digit.png http://127.0.0.1:8000/predict

POST /predict takes the bytes of one image file and returns {"result": ...}: what the pipeline returns for it, with arrays as
lists and masks as PNG in base64. GET /health returns {"status": "ok", ...}. Errors are {"error": message}, see docs/serving.md.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
from typing import Any

import numpy as np
import PIL.Image
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import natjax

TASKS = ("image-classification", "image-feature-extraction", "image-segmentation", "object-detection")
BODY_SECONDS = 30  # a client has so long to send an image
MAX_SIDE = 16_384  # pixels: a row takes memory and time of its own, and a small file may have millions of them


class Batcher:
    """Answers images in batches of those that wait when the model is free: none waits for a batch to fill.

    Attributes:
        pipeline: a list of images in, a list of results out; called by one thread at a time.
        size: most images of a batch.
    """

    def __init__(self, pipeline: Any, size: int):
        self.pipeline, self.size = pipeline, size
        self._queue: asyncio.Queue[tuple[PIL.Image.Image, asyncio.Future]] = asyncio.Queue()

    async def __call__(self, image: PIL.Image.Image) -> Any:
        """Returns the result of one image, or raises what the pipeline raised for it."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image, answer))
        return await answer

    async def run(self) -> None:
        """Answers until it is cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            results = await asyncio.to_thread(self._results, [image for image, _ in batch])
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # its client has gone
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    def _results(self, images: list[PIL.Image.Image]) -> list[Any]:
        try:
            return self.pipeline(images)
        except Exception as error:  # of one of them: the others are answered all the same
            if len(images) == 1:
                return [error]
            return [result for image in images for result in self._results([image])]


def application(pipeline: Any, *, max_bytes: int, max_waiting: int) -> Starlette:
    """Returns the ASGI application of a pipeline.

    Args:
        pipeline: from `natjax.pipeline`.
        max_bytes: most bytes of an image file.
        max_waiting: most requests that are received, decoded and answered at a time; more get status 503.
    """
    batcher = Batcher(pipeline, pipeline.batch_size)
    free = max_waiting

    async def predict(request: Request) -> Response:
        nonlocal free
        if not free:
            raise HTTPException(503, "Too many requests wait; try again later.", {"Retry-After": "1"})
        free -= 1
        try:
            file = await body(request, max_bytes)
            image = await asyncio.to_thread(decoded, file, pipeline.processor.mode)
            result = await batcher(image)
        finally:
            free += 1
        return Response(json.dumps({"result": result}, default=encoded), media_type="application/json")

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": max_waiting - free, "natjax": natjax.__version__})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        await asyncio.to_thread(warm_up, pipeline)
        running = asyncio.create_task(batcher.run())
        yield  # until the last request is answered
        running.cancel()

    return Starlette(
        routes=[Route("/predict", predict, methods=["POST"]), Route("/health", health)],
        exception_handlers={HTTPException: refused, natjax.ImageError: unreadable, Exception: failed},
        lifespan=lifespan,
    )


async def body(request: Request, most: int) -> bytes:
    """Returns the body of a request, of which no more than `most` bytes are ever held.

    Raises:
        HTTPException: it is no image file by its type, too large or too slow.
    """
    kind = request.headers.get("content-type", "application/octet-stream")
    if not kind.startswith(("image/", "application/octet-stream")):
        raise HTTPException(
            415, "Send the bytes of an image file, with Content-Type image/jpeg, image/png or the like."
        )
    declared = request.headers.get("content-length", "0")
    file = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if int(declared) <= most:  # uvicorn has refused what is no number
                async for part in request.stream():
                    file += part
                    if len(file) > most:
                        break
                else:
                    return bytes(file)
    except TimeoutError:
        raise HTTPException(408, f"The image did not arrive within {BODY_SECONDS} seconds.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The image ended early.") from None
    raise HTTPException(413, f"An image file may have {most} bytes; this one has more.", {"Connection": "close"})


def decoded(file: bytes, mode: str) -> PIL.Image.Image:
    """Returns the image of a file, upright.

    Raises:
        natjax.ImageError: it cannot be read, or a limit is exceeded; pixels are not decoded then.
    """
    size = (0, 0)
    with contextlib.suppress(Exception), PIL.Image.open(io.BytesIO(file)) as image:  # load_image says what is wrong
        size = image.size
    if max(size) > MAX_SIDE:
        raise natjax.ImageError(f"The image has {size[0]} x {size[1]} pixels; a side may have {MAX_SIDE}.")
    return natjax.load_image(file, mode)


def warm_up(pipeline: Any) -> None:
    """Compiles the model for all sizes of batches, so that no request waits for it where images are resized to one size."""
    blank, size = PIL.Image.new(pipeline.processor.mode, (64, 64)), 1
    while size < pipeline.batch_size:
        pipeline([blank] * size)
        size *= 2
    pipeline([blank] * pipeline.batch_size)


def encoded(value: Any) -> Any:
    """Returns what JSON has for an array, a number of NumPy's or a mask."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    file = io.BytesIO()
    value.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


async def refused(request: Request, error: Exception) -> Response:
    """Answers a request that is none of this server's, or beyond its limits."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def unreadable(request: Request, error: Exception) -> Response:
    """Answers a request whose image cannot be read."""
    return JSONResponse({"error": str(error)}, 422)


async def failed(request: Request, error: Exception) -> Response:
    """Answers a request whose failure is the server's; uvicorn logs it."""
    return JSONResponse({"error": "The server failed; its log says why."}, 500)


def main() -> None:
    """Reads the command line and serves until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Serves a model over HTTP.")
    parser.add_argument("--model", required=True, help="a checkpoint or a preset's name")
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--batch-size", type=int, default=8, help="most images of a step of the model; default: 8")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one, which the log names")
    parser.add_argument("--max-bytes", type=int, default=16_000_000, help="of an image file; default: 16 MB")
    parser.add_argument("--max-pixels", type=int, default=25_000_000, help="of an image; default: 25 million")
    parser.add_argument("--max-waiting", type=int, default=32, help="requests at a time; default: 32")
    arguments = parser.parse_args()
    PIL.Image.MAX_IMAGE_PIXELS = arguments.max_pixels
    pipeline = natjax.pipeline(arguments.task, arguments.model, batch_size=arguments.batch_size)
    app = application(pipeline, max_bytes=arguments.max_bytes, max_waiting=arguments.max_waiting)
    uvicorn.run(app, host=arguments.host, port=arguments.port, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
