"""Images dropped on the page Generate, which fill it in."""

from __future__ import annotations

import json
from pathlib import Path

from streamlit.testing.v1 import AppTest

from demo.app import options, plain
from tests.demo.pages import BROWSER
from tests.demo.server.test_foreign_parameters import INFOTEXT, png


def drop(content: bytes, folder: str) -> None:
    """Streamlit script that takes a dropped image."""
    from pathlib import Path

    from demo.app import reuse
    from demo.app.app_dirs import AppDirs

    reuse.apply_content(content, "a.png", AppDirs(Path(folder) / "runs", Path(folder) / "out"))
    reuse.show_note()


def test_dropped_images_fill_the_page_in(tmp_path: Path) -> None:
    page = AppTest.from_function(drop, args=(png(parameters=INFOTEXT), str(tmp_path)))
    page.session_state["session_id"] = BROWSER
    page.run()
    assert page.session_state["prompt"] == "a (red:1.2) cat,\non a table"
    assert page.session_state[options.widget_key("sampler")] == "dpmpp_2m"
    assert page.session_state[options.widget_key("width")] == 512
    notes = [plain.unescape(each.value) for each in page.caption]
    assert notes[0].startswith("Filled in from a.png (AUTOMATIC1111): ")
    assert notes[1] == "Not used: LoRA: detail:0.5 · Model: dream, shaper · Clip skip: 2"


def test_dropped_images_cannot_show_files_of_the_machine(tmp_path: Path) -> None:
    own = tmp_path / "out" / BROWSER / "init_images" / "a.png"
    parameters = {"prompt": "a cat", "img": ["/etc/secret.png", str(own), "a\0b"], "mask": f"{own}/../../../x.png"}
    page = AppTest.from_function(drop, args=(png(generation_parameters=json.dumps(parameters)), str(tmp_path)))
    page.session_state["session_id"] = BROWSER
    page.run()
    assert not page.exception
    assert page.session_state["previous inputs"] == {"img": [str(own)], "mask": None}


def test_dropped_images_without_parameters_change_nothing(tmp_path: Path) -> None:
    page = AppTest.from_function(drop, args=(png(), str(tmp_path)))
    page.session_state["prompt"] = "mine"
    page.run()
    assert page.session_state["prompt"] == "mine"
    assert "a.png holds no generation parameters" in page.session_state["dropped image error"]
