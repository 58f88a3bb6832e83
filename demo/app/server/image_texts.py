"""Generation parameters in an image that a visitor gives: ours, AUTOMATIC1111's, InvokeAI's, or ComfyUI's."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from demo.app.server import a1111_infotext, comfyui_prompt, invokeai_metadata, uploads
from demo.app.server.foreign_parameters import ForeignParameters
from gm.errors import UserError
from gm.sampling import image_files

_COMFYUI_KEY = "prompt"
_MAX_JSON = 5 * 10**6  # characters


def read(content: bytes, name: str) -> ForeignParameters:
    """Return the parameters in the image `content`, whose pixels are not decoded.

    UserError, with the `name` of the file, if it is not an image or holds none.
    """
    uploads.check_size(content, uploads.MAX_IMAGE_BYTES, name)
    texts = _texts(content, name)
    try:
        for key in (image_files.PARAMETERS_KEY, "recipe"):
            if key in texts:
                return ForeignParameters("", _json(texts[key]))
        if image_files.A1111_KEY in texts:
            return a1111_infotext.parse(texts[image_files.A1111_KEY])
        if invokeai_metadata.KEY in texts:
            return invokeai_metadata.parse(_json(texts[invokeai_metadata.KEY]))
        if invokeai_metadata.SD_KEY in texts:
            return invokeai_metadata.parse_sd(_json(texts[invokeai_metadata.SD_KEY]))
        if invokeai_metadata.DREAM_KEY in texts:
            return invokeai_metadata.parse_dream(texts[invokeai_metadata.DREAM_KEY])
        if _COMFYUI_KEY in texts:
            return comfyui_prompt.parse(_json(texts[_COMFYUI_KEY]))
    except ValueError as error:
        raise UserError(f"the generation parameters in {name} are damaged; give another image") from error
    raise UserError(
        f"{name} holds no generation parameters; programs that edit or send images remove them: give the original file"
    )


def infotext(path: Path, parameters: Mapping[str, Any]) -> str:
    """Return the parameters of our image at `path` as AUTOMATIC1111 shows them; older images have a line for each."""
    try:
        text = _texts(path.read_bytes(), path.name).get(image_files.A1111_KEY)
    except (OSError, UserError):
        text = None
    return text or "\n".join(f"{name}: {value}" for name, value in parameters.items() if name != "model")


def _texts(content: bytes, name: str) -> dict[str, str]:
    """Return the texts in an image: those of a PNG, and the comment in the Exif data of JPEG and WebP."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            # Of a PNG that would decode the pixels, as its texts may follow them.
            exif = image.getexif() if image.format != "PNG" else Image.Exif()
            comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise UserError(f"{name} is not a readable PNG, JPEG or WebP image; give another") from error
    if isinstance(comment, bytes) and image_files.A1111_KEY not in texts:
        # Eight bytes name the encoding (Exif 2.3, UserComment); AUTOMATIC1111 writes UTF-16, big-endian.
        encoding = "utf-16-be" if comment.startswith(b"UNICODE\0") else "utf-8"
        if text := comment[8:].decode(encoding, errors="replace").strip("\0 "):
            texts[image_files.A1111_KEY] = text
    return texts


def _json(text: str) -> Any:
    """Return what JSON holds, a mapping; ValueError if it is damaged."""
    if len(text) > _MAX_JSON:
        raise ValueError("too long")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(value, dict):
        raise ValueError("not a mapping")
    return value
