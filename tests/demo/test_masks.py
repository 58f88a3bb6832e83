"""Masks painted in the browser."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.app import init_inputs, mask_brush
from gm.errors import UserError


def test_painted_masks_have_the_size_of_their_image(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 20), "green").save(image)
    painted = Image.new("RGB", (20, 10))
    painted.paste("white", (0, 0, 10, 10))
    content = io.BytesIO()
    painted.save(content, "PNG")
    path = init_inputs.store_mask(content.getvalue(), image, tmp_path / "init")
    assert path is not None
    mask = np.asarray(Image.open(path))
    assert mask.shape == (20, 40)
    assert (mask[:, :16] == 255).all()
    assert (mask[:, 24:] == 0).all()
    assert list((tmp_path / "init").iterdir()) == [path]
    empty = io.BytesIO()
    Image.new("RGB", (20, 10)).save(empty, "PNG")
    assert init_inputs.store_mask(empty.getvalue(), image, tmp_path / "init") is None
    with pytest.raises(UserError, match="not an image"):
        init_inputs.store_mask(b"<svg>", image, tmp_path / "init")


def test_masks_from_the_browser_are_png_or_nothing() -> None:
    url = f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}"
    assert mask_brush.decode(url) == b"PNG"
    for value in (None, 5, "", "data:text/html,x", url + "!", url + "A" * 5 * 10**6):
        assert mask_brush.decode(value) is None
