"""The app in Chromium: from training images to a generated image, and two users at once, on two screen sizes."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from demo.app.server import training_jobs
from gm.sampling import image_files
from tests.project import ALL_CORES

ROOT = Path(__file__).resolve().parents[2]
WIDE, NARROW = (1280, 1000), (390, 844)
pytestmark = pytest.mark.browser
_BRUSH = "iframe[title$='mask_brush']"
_DROP = """
const [target, content, name] = arguments;
const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, {type: "image/png"}));
for (const type of ["dragenter", "dragover", "drop"])
  target.dispatchEvent(new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: data}));
"""
_PAINTED = """
const mask = document.getElementById("mask");
const pixels = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height).data;
return pixels.filter((value, k) => k % 4 == 3 && value > 127).length / (mask.width * mask.height);
"""

_IN_FULL = "return innerHeight >= document.body.scrollHeight"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the app, served as after an installation, except for its folders."""
    folder = tmp_path_factory.mktemp("app")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [*ALL_CORES, sys.executable, "-m", "streamlit", "run", "demo/sampling.py"]
    command += ["--server.port", str(port), "--"]
    command += ["--runs", str(folder / "runs"), "--outputs", str(folder / "out")]
    with (folder / "console").open("wb") as console:
        server = subprocess.Popen(command, cwd=ROOT, stdout=console, stderr=console)
    try:
        until(lambda: _is_healthy(f"http://localhost:{port}/_stcore/health"))
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)
        for job in training_jobs.all_jobs(folder / "runs" / "app"):
            if job.state == "running":
                os.kill(job.launch.pid, signal.SIGKILL)


def _is_healthy(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        return bool(response.status == 200)
    return False


def _status(url: str, host: str) -> int:
    """Return the status with which the server answers a request that is for another host."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def until(condition: Callable[[], Any], seconds: float = 900) -> Any:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StaleElementReferenceException, IndexError):  # the page changes, or is not there yet
            result = condition()
            if result:
                return result
        assert time.monotonic() < end
        time.sleep(0.2)


class Browser:
    """A browser window with a profile of its own."""

    def __init__(self, folder: Path, size: tuple[int, int] = WIDE) -> None:
        options = webdriver.ChromeOptions()
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
        for flag in (*flags.split(), "disable-component-update", f"user-data-dir={folder / 'profile'}"):
            options.add_argument(f"--{flag}")
        options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.resize(*size)

    def resize(self, width: int, height: int) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def button(self, label: str) -> WebElement:
        buttons: list[WebElement] = until(lambda: [b for b in self.find("button") if b.text.split("\n")[-1] == label])
        return self.centered(buttons[0])

    def centered(self, element: WebElement) -> WebElement:
        """Scroll to an element, which the driver would put under the head of the page."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        return element

    def open_page(self, name: str) -> None:
        """Go to another page of the same session, by the links at its head."""
        links = until(lambda: [a for a in self.find("a") if a.text.split("\n")[-1] == name])
        self.centered(links[0]).click()

    def write(self, label: str, text: str) -> None:
        selector = f"textarea[aria-label='{label}'], input[aria-label='{label}']"
        field = until(lambda: self.find(selector))[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        field.send_keys(Keys.CONTROL, Keys.ENTER)
        until(lambda: self.find(selector)[0].get_attribute("value") == text and self.is_idle())

    def drop(self, path: Path, selector: str) -> None:
        """Drop a file on an element, as from a file manager."""
        content = base64.b64encode(path.read_bytes()).decode()
        self.driver.execute_script(_DROP, self.find(selector)[0], content, path.name)

    def prompt(self) -> str | None:
        fields = self.find("textarea[aria-label='Prompt']")
        return fields[0].get_attribute("value") if fields else None

    def selected_embeddings(self) -> list[WebElement]:
        return self.find("[data-testid='stSidebar'] [data-baseweb='tag']")

    def is_idle(self) -> bool:
        """Whether the page's script has finished running."""
        return self.find("[data-testid='stApp']")[0].get_attribute("data-test-script-state") != "running"

    def shows(self, text: str) -> bool:
        # Not the driver's `text` of the body, which looks at every element's style and keeps a core busy.
        return text in self.driver.execute_script("return document.body.innerText")

    def fits(self) -> bool:
        """Whether the page is no wider than the screen."""
        width, screen = self.driver.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
        return bool(width <= screen)


@pytest.fixture
def open_browser(tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    browsers: list[Browser] = []

    def new(**options: Any) -> Browser:
        browsers.append(Browser(tmp_path / str(len(browsers)), **options))
        return browsers[-1]

    yield new
    for browser in browsers:
        browser.driver.quit()


def test_train_an_embedding_and_generate_an_image_with_it(
    open_browser: Callable[..., Browser], address: str, tmp_path: Path
) -> None:
    page = open_browser()
    page.driver.get(f"{address}/train")
    uploader = until(lambda: page.find("[data-testid='stMain'] input[type=file]"))[0]
    uploader.send_keys("\n".join(str(path) for path in sorted((ROOT / "datasets" / "humbug").glob("*.png"))))
    until(lambda: page.shows("humbug_1.png · 256×256"))
    page.write("Placeholder token", "<humbug>")
    page.write("Steps", "3")
    page.button("Train").click()
    until(lambda: page.shows("running"))
    page.driver.get("about:blank")  # a user who leaves and returns finds the run
    page.driver.get(f"{address}/train")
    until(lambda: page.shows("finished · step 3 of 3"))  # it compiles four graphs
    until(lambda: page.shows("Sample images over the steps"))
    assert len(page.find("[data-testid='stMain'] textarea[aria-label='Caption']")) == 5
    assert page.fits()
    page.button("Try it").click()
    until(page.selected_embeddings)
    until(lambda: page.prompt() == "a photo of <humbug>")
    assert page.driver.current_url == f"{address}/generate"
    until(lambda: [b for b in page.find("button") if b.text == "<humbug>"])[0].click()
    until(lambda: page.prompt() == "a photo of <humbug> <humbug>")
    page.write("Steps", "4")
    page.write("Batch count", "1")
    page.button("Generate").click()
    until(lambda: page.find("[data-testid='stDownloadButton'] button"))[0].click()
    (path,) = until(lambda: list((tmp_path / "0").glob("image_*.png")))
    parameters = image_files.read_parameters(path)
    assert (parameters["prompt"], parameters["sample_step"]) == ("a photo of <humbug> <humbug>", 4)
    for name, text in (("Generate", "Generated images"), ("Compare", "Baseline prompt"), ("Train", "New embedding")):
        page.resize(*WIDE)
        page.open_page(name)
        until(lambda text=text: page.shows(text) and page.is_idle())
        assert page.fits()
        time.sleep(5)  # until the sidebar has scanned for new files, which once cleared the selection
        assert page.selected_embeddings()
        page.resize(*NARROW)
        until(page.is_idle)
        assert page.fits()
        links = [a for a in page.find("[data-testid='stMain'] a") if a.is_displayed()]
        assert [a.text.split("\n")[-1] for a in links][:3] == ["Generate", "Compare", "Train"]
        page.driver.get(f"{address}/{name.lower()}")  # each page has an address of its own
        until(lambda text=text: page.shows(text) and page.is_idle())


def test_second_user_is_queued_and_both_can_cancel(open_browser: Callable[..., Browser], address: str) -> None:
    first, second = open_browser(), open_browser(size=NARROW)
    for page, prompt in ((first, "a red heart"), (second, "a blue star")):
        page.driver.get(address)
        page.write("Prompt", prompt)
        page.write("Steps", "300")
        page.button("Generate").click()
    until(lambda: second.shows("1 ahead of you"))
    second.driver.refresh()  # its own prompt and task are found again
    until(lambda: second.prompt() == "a blue star")
    until(lambda: second.shows("1 ahead of you") or second.shows("Step "))
    assert _status(address, "evil.example") == 403
    first.open_page("Train")
    until(lambda: first.shows("New embedding") and first.is_idle())
    time.sleep(10)  # the sidebar's fragment runs, which once let Streamlit drop the widgets of the other page
    first.open_page("Generate")
    until(lambda: first.prompt() == "a red heart")
    first.driver.refresh()
    until(lambda: first.prompt() == "a red heart")
    until(lambda: first.find("input[aria-label='Steps']")[0].get_attribute("value") == "300")
    until(lambda: first.shows("Step "))
    assert first.find("[data-testid='stMain'] img") or until(lambda: first.find("[data-testid='stMain'] img"))
    assert second.fits()
    first.button("Cancel").click()
    until(lambda: first.shows("Cancelled"))
    until(lambda: second.shows("Step "))
    second.button("Cancel").click()
    until(lambda: second.shows("Cancelled"))


def test_a_dropped_image_fills_the_page_in_and_a_painted_mask_stays(
    open_browser: Callable[..., Browser], address: str, tmp_path: Path
) -> None:
    parameters = {"prompt": "a blue star", "negative_prompt": "", "seed": 7, "sampler": "heun"}
    image = image_files.save(np.full((64, 96, 3), 200, np.uint8), parameters, tmp_path, "image")
    page = open_browser()
    page.driver.get(address)
    until(lambda: page.prompt() == "" and page.is_idle())
    page.drop(image, "[data-testid='stMain'] [data-testid='stFileUploaderDropzone']")
    until(lambda: page.prompt() == "a blue star" and page.shows("Filled in from image_00000.png"))
    until(lambda: page.find("input[aria-label='Seed']")[0].get_attribute("value") == "7" and page.is_idle())
    other = image_files.save(np.zeros((8, 8, 3), np.uint8), {"prompt": "a red heart", "seed": 8}, tmp_path, "other")
    page.drop(other, "h1")  # anywhere else on the page is the box, too
    until(lambda: page.prompt() == "a red heart" and page.shows("Filled in from other_00000.png"))
    until(lambda: [each for each in page.find("label") if each.text == "Inpaint"])[0].click()
    until(lambda: page.shows("Upload an init image") and page.is_idle())
    page.find("[data-testid='stMain'] input[type=file]")[1].send_keys(str(image))
    page.driver.switch_to.frame(until(lambda: page.find(_BRUSH))[0])
    stage = until(lambda: [each for each in page.find("#stage") if each.size["height"] > 50])[0]
    until(lambda: page.driver.execute_script(_IN_FULL))  # the frame grows to its content, and moves meanwhile
    page.centered(stage)
    strokes = ActionChains(page.driver).move_to_element_with_offset(stage, -60, 0).click_and_hold()
    strokes.move_by_offset(60, 20).move_by_offset(60, -20).release().perform()
    painted = page.driver.execute_script(_PAINTED)
    assert 0.05 < painted < 0.5
    page.driver.switch_to.default_content()
    time.sleep(1)
    until(page.is_idle)
    page.driver.refresh()  # the mask is at the server, and comes back from there
    page.driver.switch_to.frame(until(lambda: page.find(_BRUSH))[0])
    until(lambda: abs(page.driver.execute_script(_PAINTED) - painted) < 0.02)
