"""The app in a real browser, from images of a thing to an image with its word; for two people, on two screens."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from gm.sampling import image_files

ROOT = Path(__file__).resolve().parents[2]
WIDE, NARROW = (1280, 1000), (390, 844)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return where the app is served, just as it is after the install, but for its folders."""
    folder = tmp_path_factory.mktemp("app")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "demo/sampling.py", "--server.port", str(port), "--"]
    command += ["--runs", str(folder / "runs"), "--outputs", str(folder / "out")]
    with (folder / "said").open("wb") as said:
        server = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    try:
        until(lambda: _answers(f"http://localhost:{port}/_stcore/health"))
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def until(condition: Callable[[], Any], seconds: float = 150) -> Any:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StaleElementReferenceException):
            found = condition()
            if found:
                return found
        assert time.monotonic() < end
        time.sleep(0.2)


class Visitor:
    """A browser window of its own, without anything kept from another."""

    def __init__(self, folder: Path, size: tuple[int, int] = WIDE) -> None:
        chosen = webdriver.ChromeOptions()
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
        for flag in (*flags.split(), "disable-component-update", f"user-data-dir={folder / 'profile'}"):
            chosen.add_argument(f"--{flag}")
        chosen.add_experimental_option("prefs", {"download.default_directory": str(folder)})
        self.browser = webdriver.Chrome(options=chosen, service=Service(shutil.which("chromedriver")))
        self.size(*size)

    def size(self, width: int, height: int) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def find(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def button(self, label: str) -> WebElement:
        found: WebElement = until(lambda: [b for b in self.find("button") if b.text.split("\n")[-1] == label])[0]
        return found

    def open(self, name: str) -> None:
        """Go to another page without leaving the session, by the links that a wide screen has."""
        until(lambda: [a for a in self.find("a") if a.text.split("\n")[-1] == name])[0].click()

    def write(self, label: str, text: str) -> None:
        selector = f"textarea[aria-label='{label}'], input[aria-label='{label}']"
        field = until(lambda: self.find(selector))[0]
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        field.send_keys(Keys.CONTROL, Keys.ENTER)
        until(lambda: self.find(selector)[0].get_attribute("value") == text and self.calm())

    def words(self) -> list[WebElement]:
        """Return the learned words in use."""
        return self.find("[data-testid='stSidebar'] [data-baseweb='tag']")

    def calm(self) -> bool:
        """Whether the page has answered what was done last."""
        return self.find("[data-testid='stApp']")[0].get_attribute("data-test-script-state") != "running"

    def says(self, text: str) -> bool:
        return text in self.browser.find_element(By.TAG_NAME, "body").text

    def fits(self) -> bool:
        wide, inner = self.browser.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
        return bool(wide <= inner)


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[Callable[..., Visitor]]:
    made: list[Visitor] = []

    def come(**options: Any) -> Visitor:
        made.append(Visitor(tmp_path / str(len(made)), **options))
        return made[-1]

    yield come
    for each in made:
        each.browser.quit()


def test_from_images_of_a_thing_to_an_image_with_its_word(
    visitor: Callable[..., Visitor], address: str, tmp_path: Path
) -> None:
    page = visitor()
    page.browser.get(f"{address}/learn")
    sender = until(lambda: page.find("[data-testid='stMain'] input[type=file]"))[0]
    sender.send_keys("\n".join(str(path) for path in sorted((ROOT / "datasets" / "humbug").glob("*.png"))))
    page.write("word", "<humbug>")
    page.write("steps", "3")
    page.button("Learn").click()
    until(lambda: page.says("running"))
    page.browser.get("about:blank")  # whoever leaves and comes back finds the run
    page.browser.get(f"{address}/learn")
    until(lambda: page.says("finished · step 3 of 3"))
    assert until(lambda: page.find("[data-testid='stMain'] img"))
    assert page.fits()
    page.button("Use it").click()
    until(page.words)  # a page that is left forgets its clicks
    page.open("Draw")
    until(lambda: [b for b in page.find("button") if b.text == "<humbug>"])[0].click()
    until(lambda: page.find("textarea[aria-label='prompt']")[0].get_attribute("value") == "<humbug>")
    page.write("steps", "4")
    page.write("images", "1")
    page.button("Draw").click()
    until(lambda: page.find("[data-testid='stDownloadButton'] button"))[0].click()
    (path,) = until(lambda: list((tmp_path / "0").glob("image_*.png")))
    assert (image_files.read_parameters(path)["prompt"], image_files.read_parameters(path)["sample_step"]) == (
        "<humbug>",
        4,
    )
    for name, shown in (("Draw", "Drawn"), ("Compare", "the same in words"), ("Learn", "A new word")):
        page.size(*WIDE)
        page.open(name)
        until(lambda shown=shown: page.says(shown) and page.calm())
        assert page.fits()
        time.sleep(5)  # until the sidebar has looked for new words, which once lost those in use
        assert page.words()
        page.size(*NARROW)
        until(page.calm)
        assert page.fits()


def test_two_people_wait_for_each_other_and_one_gives_up(visitor: Callable[..., Visitor], address: str) -> None:
    first, second = visitor(), visitor(size=NARROW)
    for page in (first, second):
        page.browser.get(address)
        page.write("prompt", "a red heart")
        page.write("steps", "300")
        page.button("Draw").click()
    until(lambda: second.says("1 before you"))
    until(lambda: first.says("step "))
    assert first.find("[data-testid='stMain'] img") or until(lambda: first.find("[data-testid='stMain'] img"))
    assert second.fits()
    first.button("Cancel").click()
    until(lambda: first.says("Cancelled"))
    until(lambda: second.says("step "))
    second.button("Cancel").click()
    until(lambda: second.says("Cancelled"))
