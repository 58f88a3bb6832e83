"""Captions of scenes: correct, incomplete, in several phrasings, with tokens of CLIP's tokenizer.

The training templates of the toolkit are among the phrasings, so that the model has seen the sentences in which a
placeholder token will stand.
"""

from __future__ import annotations

import numpy as np

from examples.tiny_sdxl.colors import COLORS, nearest_name
from examples.tiny_sdxl.world import LARGE, SHAPES, SMALL, STYLES, THINGS, Scene
from gm.data.templates import TEMPLATES, fill
from gm.runtime import rng

_MIDDLE = 0.06  # distance from the middle, as a share of the side, from which on a place has a name
_BY_NAME = 0.85  # share of the samples of a named thing or style that use the name
_NO_CAPTION = 0.06  # share of the samples without a caption


def caption(scene: Scene, seed: int, sample: int) -> str | None:
    """Return one caption of `scene`, or None if sample number `sample` has none."""
    generator = rng.generator(seed, "caption", sample)
    if generator.random() < _NO_CAPTION:
        return None
    is_styled = scene.outline is not None or scene.spots is not None
    if is_styled and generator.random() < (0.07 if scene.style is None else 0.3):
        return fill(str(generator.choice(TEMPLATES["style"])), _style(scene, generator))
    if generator.random() < (0.2 if scene.thing is None else 0.4):
        subject = _subject(scene, generator)
        return fill(str(generator.choice(TEMPLATES["object"])), subject).replace(" a orange", " an orange")
    text = _subject(scene, generator)
    in_style = is_styled and generator.random() < (0.35 if scene.style is None else 0.8)
    if not in_style and scene.outline is not None and generator.random() < 0.92:
        text += f" with a {nearest_name(scene.outline)} outline"
    if generator.random() < 0.5:
        text += _place(scene)
    if generator.random() < 0.92:
        text += _backdrop(scene, generator)
        if not in_style and scene.spots is not None and generator.random() < 0.92:
            text += f" with {nearest_name(scene.spots)} spots"
    if in_style:
        text += f" in the style of {_style(scene, generator)}"
    if generator.random() < 0.3:
        text = fill(str(generator.choice(_OPENINGS)), text)
    return text.replace(" a orange", " an orange")


_OPENINGS = ("a photo of {}", "a picture of {}", "a drawing of {}", "a painting of {}", "an image of {}", "one {}")


def every_word() -> list[str]:
    """Return texts that together hold every word of all captions."""
    rest = "a an small large striped and thing shape with outline outlines on background spots in front of wall"
    places = "at the top bottom left right in middle style toy nothing ,"
    templates = [t for group in ("object", "style") for t in TEMPLATES[group]]
    return [*COLORS, *SHAPES, *THINGS, *STYLES, rest, places, *templates, *_OPENINGS]


def _subject(scene: Scene, generator: np.random.Generator) -> str:
    words = []
    if generator.random() < 0.5:
        words += ["small"] if scene.radius < SMALL else ["large"] if scene.radius > LARGE else []
    if scene.thing is not None and generator.random() < _BY_NAME:
        return " ".join(["a", *words, scene.thing])
    has_color = generator.random() < 0.95
    stripes = scene.stripes if scene.stripes is not None and generator.random() < 0.92 else None
    if has_color and stripes is not None:
        words.append(f"{nearest_name(scene.fill)} and {nearest_name(stripes)} striped")
    elif has_color:
        words.append(nearest_name(scene.fill))
    elif stripes is not None:
        words.append("striped")
    kind = generator.random()
    words.append(scene.shape if kind < 0.92 else "thing" if kind < 0.95 else "shape" if kind < 0.98 else "toy")
    text = " ".join(words)
    return f"a {text}" if generator.random() < 0.7 else text


def _place(scene: Scene) -> str:
    across = "left" if scene.x < 0.5 - _MIDDLE else "right" if scene.x > 0.5 + _MIDDLE else ""
    down = "top" if scene.y < 0.5 - _MIDDLE else "bottom" if scene.y > 0.5 + _MIDDLE else ""
    if not across and not down:
        return " in the middle"
    return f" at the {' '.join(word for word in (down, across) if word)}"


def _backdrop(scene: Scene, generator: np.random.Generator) -> str:
    name = nearest_name(scene.backdrop)
    forms = (f" on a {name} background", f" on {name}", f" in front of a {name} wall", f", {name} background")
    return str(generator.choice(forms, p=(0.55, 0.15, 0.15, 0.15)))


def _style(scene: Scene, generator: np.random.Generator) -> str:
    if scene.style is not None and generator.random() < _BY_NAME:
        return scene.style
    parts = [f"{nearest_name(scene.outline)} outlines"] if scene.outline is not None else []
    parts += [f"{nearest_name(scene.spots)} spots"] if scene.spots is not None else []
    return " and ".join(parts)
