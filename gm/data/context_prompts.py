"""Context prompts: prompts without images, for the context loss; `{}` is the placeholder token, or the class word.

The loss compares the words after `{}`, so most of each prompt follows it.
"""

from __future__ import annotations

from pathlib import Path

from gm.data import templates

_OBJECT = (
    "{} in the desert",
    "{} in the snow",
    "{} in a dense forest",
    "{} on a beach at sunset",
    "{} on the moon",
    "{} under water, among fish",
    "{} in a busy street at night",
    "{} in front of a castle",
    "{} on top of a mountain",
    "{} floating in the sky above clouds",
    "{} on a wooden table beside a cup of coffee",
    "{} on a purple rug",
    "{} in a bathtub full of foam",
    "{} on a shelf between old books",
    "{} in the rain, with reflections on the ground",
    "{} in a field of sunflowers",
    "{} with a city in the background",
    "{} with a tree and autumn leaves in the background",
    "{} beside a dog",
    "{} on the back of an elephant",
    "{} wearing a red hat",
    "{} wrapped in gold foil",
    "{} made of glass",
    "{} made of green wool",
    "{} as an oil painting by an old master",
    "{} as a pencil sketch",
    "{} as a watercolor with soft colors",
    "{} as a logo in black and white",
    "{} on a stamp of the nineteenth century",
    "{}, seen from far away in an empty white hall",
)
_STYLE = (
    "in the style of {}, a castle on a hill",
    "in the style of {}, a ship on a stormy sea",
    "in the style of {}, a cat on a red sofa",
    "in the style of {}, a street in the rain at night",
    "in the style of {}, two children on a beach",
    "in the style of {}, a bowl of fruit on a table",
    "in the style of {}, a portrait of an old man",
    "in the style of {}, a robot in a garden",
    "in the style of {}, mountains and a lake in the morning",
    "in the style of {}, an elephant in the snow",
    "in the style of {}, a city with flying cars",
    "in the style of {}, a tree in a field of sunflowers",
    "in the style of {}, an astronaut on a horse",
    "in the style of {}, a train on a bridge",
    "in the style of {}, a kitchen with a large window",
    "in the style of {}, a dog that runs through water",
)
_FACE = (
    "{} as a firefighter in front of a burning house",
    "{} as an astronaut on the moon",
    "{} as a cook in a kitchen",
    "{} as a knight in shining armor",
    "{} with a red hat and sunglasses",
    "{} with a beard and gray hair",
    "{} with a cat on the shoulder",
    "{} riding a bicycle in a city",
    "{} playing the piano in a dark hall",
    "{} reading a book under a tree",
    "{} swimming in the sea",
    "{} laughing with friends at a table",
    "{} crying in the rain",
    "{} asleep on a train",
    "{} on a beach at sunset",
    "{} in the snow, in a thick coat",
    "{} in a suit, giving a speech",
    "{} as an oil painting by an old master",
    "{} as a pencil sketch",
    "{} as a statue of white marble in a museum",
    "{} as a figure of a comic",
    "{} on a stamp of the nineteenth century",
)
CONTEXT_PROMPTS: dict[str, tuple[str, ...]] = {"object": _OBJECT, "style": _STYLE, "face": _FACE}


def load(learnable_property: str, file: str | None) -> tuple[str, ...]:
    """Return the context prompts of `learnable_property`, or those of `file`, which is written like a template file.

    Raises UserError as `templates.read` does.
    """
    return CONTEXT_PROMPTS[learnable_property] if file is None else templates.read(Path(file), "--context_prompt_file")
