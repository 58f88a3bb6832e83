"""Measure what the tiny model can do, by the judge: does it draw what it is told, does it learn what it never saw.

python examples/tiny_sdxl/measure.py drawing
python examples/tiny_sdxl/measure.py learning --num_vectors 4
python examples/tiny_sdxl/measure.py together
python examples/tiny_sdxl/measure.py away --steps 200
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.tiny_sdxl import judge, world
from examples.tiny_sdxl.colours import COLOURS, nearest_name
from examples.tiny_sdxl.concepts import CONFETTI, HUMBUG, Unseen
from examples.tiny_sdxl.world import SHAPES
from gm import api
from gm.api import Embedding, Toolkit
from gm.config import cli

BACKDROPS = ("white", "blue", "yellow", "black")
STYLED = ("a red circle", "a blue star", "a yellow heart", "a black cross")
BATCH = 16  # images drawn at once
THINGS = (HUMBUG, CONFETTI)
NEGATIVE = "<not-that>"


def unseen_prompts() -> list[tuple[str, str, str]]:
    """Return (shape, colour, backdrop) for every shape in the colours that training never gave it."""
    pairs = [(shape, name) for shape in SHAPES for name in COLOURS if world.is_held_out(shape, name)]
    return [(shape, name, backdrop) for shape, name in pairs for backdrop in BACKDROPS if backdrop != name]


def drawing(toolkit: Toolkit, wanted: Sequence[tuple[str, str, str]]) -> dict[str, float]:
    """Return the shares of images whose shape, colour and backdrop the judge sees as the prompt says them."""
    prompts = [f"a {colour} {shape} on a {backdrop} background" for shape, colour, backdrop in wanted]
    images = api.generate(toolkit, prompts, batch_size=BATCH)
    right = []
    for image, (shape, colour, backdrop) in zip(images, wanted, strict=True):
        seen = judge.look(image)
        right.append((seen.shape == shape, nearest_name(seen.fill) == colour, nearest_name(seen.backdrop) == backdrop))
    shares = np.mean(right, axis=0)
    return {name: round(float(share), 3) for name, share in zip(("shape", "colour", "backdrop"), shares, strict=True)}


def prompts_for(thing: Unseen, word: str, backdrop: str | None = None) -> list[str]:
    """Return four prompts with `word` in the place of the concept, on a backdrop if one is named."""
    where = f" on a {backdrop} background" if backdrop else ""
    if thing.kind == "object":
        return [f"a {word}{where}"] * 4
    return [f"{scene}{where} in the style of {word}" for scene in STYLED]


def distances(
    toolkit: Toolkit, thing: Unseen, word: str, concepts: Sequence[Embedding] = (), **sampling: Any
) -> np.ndarray:
    """Return the judge's distance to `thing` of 16 images of `word`, seed by seed."""
    options = {"batch_size": BATCH, "seed": 1000, **sampling}
    images = api.generate(toolkit, prompts_for(thing, word) * 4, concepts, **options)
    return np.array([judge.distance(image, thing.colours, thing.shape) for image in images])


def obedience(toolkit: Toolkit, thing: Unseen, concept: Embedding) -> float:
    """Return the share of 16 images of the concept that have the backdrop that the prompt also asks for."""
    names = [name for name in BACKDROPS for _ in range(4)]
    prompts = [prompt for name in BACKDROPS for prompt in prompts_for(thing, thing.word, name)]
    images = api.generate(toolkit, prompts, [concept], batch_size=BATCH, seed=2000)
    seen = [nearest_name(judge.look(image).backdrop) for image in images]
    return float(np.mean([a == b for a, b in zip(seen, names, strict=True)]))


def learn(toolkit: Toolkit, thing: Unseen, num_vectors: int) -> Embedding:
    """Learn `thing` from its folder of images."""
    return api.train(
        toolkit,
        Path("datasets") / thing.folder,
        thing.word,
        num_vectors=num_vectors,
        initializer_token=thing.initializer,
        learnable_property=thing.kind,
    )


def learning(toolkit: Toolkit, thing: Unseen, concept: Embedding) -> dict[str, float]:
    """Return the median distance of the first word and of `concept`, and in how many seeds it fell by half."""
    before = distances(toolkit, thing, thing.initializer)
    after = distances(toolkit, thing, thing.word, [concept])
    return {
        "before": round(float(np.median(before)), 3),
        "after": round(float(np.median(after)), 3),
        "halved": int((after <= before / 2).sum()),
        "of": len(after),
        "backdrop": round(obedience(toolkit, thing, concept), 3),
    }


def entry(thing: Unseen, num_vectors: int) -> dict[str, Any]:
    """Return `thing` as one of several words to learn."""
    return {
        "placeholder_token": thing.word,
        "data_path": str(Path("datasets") / thing.folder),
        "num_vectors": num_vectors,
        "initializer_token": thing.initializer,
        "learnable_property": thing.kind,
    }


def together(toolkit: Toolkit, num_vectors: int) -> list[tuple[str, dict[str, float]]]:
    """Learn both things in one run of as many steps as two runs have; return what each has become."""
    steps = {"total_step": 2 * toolkit.config.training.total_step}
    learned = api.train_concepts(toolkit, [entry(thing, num_vectors) for thing in THINGS], training=steps)
    return [(thing.word, learning(toolkit, thing, own)) for thing, own in zip(THINGS, learned, strict=True)]


def with_negative(toolkit: Toolkit, thing: Unseen, num_vectors: int, steps: int) -> list[Embedding]:
    """Learn `thing` and a negative word, both from the same word."""
    own = entry(thing, num_vectors)
    negative = {**own, "placeholder_token": NEGATIVE, "data_path": "", "negative": True}
    return api.train_concepts(toolkit, [own, negative], training={"total_step": steps})


def away(toolkit: Toolkit, thing: Unseen, num_vectors: int, steps: int) -> dict[str, float]:
    """Learn `thing` for `steps` alone, and with a negative word; return the median distances by guidance.

    "alone" is without a negative prompt, "negative" with the negative word there.
    """
    alone = api.train_concepts(toolkit, [entry(thing, num_vectors)], training={"total_step": steps})
    both = with_negative(toolkit, thing, num_vectors, steps)
    found = {}
    for scale in (1.0, 3.0, 6.0):
        for name, words, prompt in (("alone", alone, ""), ("negative", both, NEGATIVE)):
            seen = distances(toolkit, thing, thing.word, words, negative_prompt=prompt, guidance_scale=scale)
            found[f"{name} {scale:g}"] = round(float(np.median(seen)), 3)
    return found


def main() -> None:
    parser = cli.Parser("Measure what the tiny model draws and learns, by the judge.")
    parser.add_argument("what", choices=("drawing", "learning", "together", "away"), help="what to measure")
    parser.add_argument(
        "--config", default="configs/training/tiny_textual_inversion.yaml", help="(default: %(default)s)"
    )
    parser.add_argument("--weight", default="checkpoints/tiny_sd_xl_base.safetensors", help="(default: %(default)s)")
    parser.add_argument("--ms_mode", type=int, choices=(0, 1), default=0, help="0 graph, 1 PyNative (default: 0)")
    parser.add_argument("--num_vectors", type=int, default=4, help="rows to learn (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of away (default: %(default)s)")
    flags = parser.read()
    toolkit = api.load(flags["config"], run={"weight": flags["weight"], "ms_mode": flags["ms_mode"]})
    if flags["what"] == "drawing":
        print(json.dumps(drawing(toolkit, unseen_prompts())))
    elif flags["what"] == "together":
        for word, found in together(toolkit, flags["num_vectors"]):
            print(word, json.dumps(found), flush=True)
    elif flags["what"] == "away":
        for thing in THINGS:
            print(thing.word, json.dumps(away(toolkit, thing, flags["num_vectors"], flags["steps"])), flush=True)
    else:
        for thing in THINGS:
            concept = learn(toolkit, thing, flags["num_vectors"])
            print(thing.word, json.dumps(learning(toolkit, thing, concept)), flush=True)


if __name__ == "__main__":
    cli.run(main)
