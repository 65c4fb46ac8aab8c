"""The built documentation site in a browser: search, dark mode, narrow screens, nothing from elsewhere."""

import functools
import http.server
import pathlib
import subprocess
import sys
import threading

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.once]
ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("", "first_steps/", "zoo/", "op/", "kernels/", "migrate/", "api/natjax/")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    """Builds the site, serves it on a free port of this machine and yields its address."""
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=ROOT, check=True)
    handler = functools.partial(Quiet, directory=str(ROOT / "build/site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def open_page(chromium, site):
    """Returns a function that opens a page of the site; errors and requests to elsewhere fail the test at its end."""
    contexts, complaints = [], []

    def open_page(path, **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((site, "data:", "blob:")) else complaints.append(request.url)
            ),
        )
        page.goto(site + path, wait_until="networkidle")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_the_screen(open_page, path, width):
    page = open_page(path, viewport={"width": width, "height": 740})
    assert page.locator("h1").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
    assert page.evaluate(broken) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_readers_and_can_be_changed(open_page, scheme):
    page = open_page("", color_scheme=scheme, viewport={"width": 1280, "height": 740})

    def brightness():
        return page.evaluate(
            """() => { const canvas = document.createElement("canvas").getContext("2d");
                canvas.fillStyle = getComputedStyle(document.body).backgroundColor; canvas.fillRect(0, 0, 1, 1);
                return canvas.getImageData(0, 0, 1, 1).data.slice(0, 3).reduce((a, b) => a + b) / 3; }"""
        )

    before = brightness()
    assert (before < 64) if scheme == "dark" else (before > 192)
    page.locator("label[title='Light mode'], label[title='Dark mode']").locator("visible=true").click()
    page.wait_for_timeout(500)
    after = brightness()
    assert (after > 192) if scheme == "dark" else (after < 64)


def test_search_finds_the_reference(open_page):
    page = open_page("", viewport={"width": 1280, "height": 740})
    page.keyboard.press("/")
    page.locator("input:visible").fill("neighborhood_attention", timeout=10_000)
    page.get_by_text("neighborhood_attention", exact=True).first.wait_for(timeout=10_000)
    page.keyboard.press("Enter")
    page.wait_for_url("**/api/kernels/**", timeout=10_000)
