"""Parts of pages in Streamlit's test driver."""

from __future__ import annotations

from typing import Any

from streamlit.testing.v1 import AppTest

from demo.app import options

BROWSER = "1" * 16


def button(app: AppTest, label: str) -> Any:
    return next(each for each in app.button if each.label == label)


def number(app: AppTest, name: str) -> Any:
    return app.number_input(key=options.widget_key(name))
