"""Measure what the tiny model can do, by the judge: does it draw what it is told, does it learn what it never saw.

python tools/tiny_model/measure.py drawing
python tools/tiny_model/measure.py learning --num_vectors 4
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gm import api, command_line
from gm.api import Concept, Toolkit
from tools.tiny_model import judge, world
from tools.tiny_model.colours import COLOURS, nearest_name
from tools.tiny_model.concepts import CONFETTI, HUMBUG, Unseen
from tools.tiny_model.world import SHAPES

BACKDROPS = ("white", "blue", "yellow", "black")


def unseen_prompts() -> list[tuple[str, str, str]]:
    """Return (shape, colour, backdrop) for every shape in the colours that training never gave it."""
    pairs = [(shape, name) for shape in SHAPES for name in COLOURS if world.is_held_out(shape, name)]
    return [(shape, name, backdrop) for shape, name in pairs for backdrop in BACKDROPS if backdrop != name]


def drawing(toolkit: Toolkit, seeds: int = 2, **sampling: Any) -> dict[str, float]:
    """Return the shares of pictures whose shape, colour and backdrop the judge sees as the prompt says them."""
    wanted = unseen_prompts() * seeds
    prompts = [f"a {colour} {shape} on a {backdrop} background" for shape, colour, backdrop in wanted]
    pictures = api.generate(toolkit, prompts, **({"batch_size": 16, "sample_step": 30} | sampling))
    seen = [judge.look(picture) for picture in pictures]
    right = {
        "shape": [scene.shape == shape for scene, (shape, _, _) in zip(seen, wanted, strict=True)],
        "colour": [nearest_name(s.fill) == name for s, (_, name, _) in zip(seen, wanted, strict=True)],
        "backdrop": [nearest_name(s.backdrop) == name for s, (_, _, name) in zip(seen, wanted, strict=True)],
    }
    return {name: float(np.mean(values)) for name, values in right.items()} | {"pictures": len(wanted)}


def prompts_for(thing: Unseen, word: str, count: int) -> list[str]:
    """Return `count` prompts with `word` in the place of the concept."""
    if thing.kind == "object":
        return [f"a photo of {word}"] * count
    scenes = [f"a {name} {shape}" for name, shape in zip(("red", "blue", "yellow", "black"), SHAPES, strict=False)]
    return [f"{scenes[k % len(scenes)]} in the style of {word}" for k in range(count)]


def distances(toolkit: Toolkit, thing: Unseen, word: str, concepts: Sequence[Concept], count: int = 16) -> np.ndarray:
    """Return the judge's distance to `thing` of `count` pictures of `word`, seed by seed."""
    prompts = prompts_for(thing, word, count)
    pictures = api.generate(toolkit, prompts, concepts, batch_size=16, sample_step=30, seed=1000)
    return np.array([judge.distance(picture, thing.colours, thing.shape) for picture in pictures])


def obedience(toolkit: Toolkit, thing: Unseen, concept: Concept) -> float:
    """Return the share of pictures with the concept that have the backdrop that the prompt also asks for."""
    names = [name for name in ("white", "blue", "yellow", "black") for _ in range(4)]
    subject = thing.word if thing.kind == "object" else "a heart"
    end = "" if thing.kind == "object" else f" in the style of {thing.word}"
    prompts = [f"a {subject} on a {name} background{end}".replace("a a ", "a ") for name in names]
    pictures = api.generate(toolkit, prompts, [concept], batch_size=16, sample_step=30, seed=2000)
    return float(np.mean([nearest_name(judge.look(p).backdrop) == n for p, n in zip(pictures, names, strict=True)]))


def learning(
    toolkit: Toolkit, thing: Unseen, num_vectors: int, say: Callable[[str], None] = print, **training: Any
) -> dict[str, float]:
    """Learn `thing` from its folder of pictures; return how far from it the word draws, before and after."""
    before = distances(toolkit, thing, thing.initializer, [])
    concept = api.learn(
        toolkit,
        Path("datasets") / thing.folder,
        thing.word,
        num_vectors=num_vectors,
        initializer_token=thing.initializer,
        learnable_property=thing.kind,
        training=training,
    )
    after = distances(toolkit, thing, thing.word, [concept])
    found = {
        "before": float(np.median(before)),
        "after": float(np.median(after)),
        "halved": int((after <= before / 2).sum()),
        "of": len(after),
        "backdrop": obedience(toolkit, thing, concept),
    }
    say(f"{thing.word} num_vectors={num_vectors} ms_mode={toolkit.config.run.ms_mode}: {json.dumps(found)}")
    return found


def main() -> None:
    parser = command_line.Parser("Measure what the tiny model draws and learns, by the judge.")
    parser.add_argument("what", choices=("drawing", "learning"))
    parser.add_argument("--config", default="configs/training/tiny_textual_inversion.yaml")
    parser.add_argument("--weight", default="checkpoints/tiny_sd_xl_base.safetensors")
    parser.add_argument("--ms_mode", type=int, default=0)
    parser.add_argument("--num_vectors", type=int, default=4)
    flags = parser.read()
    toolkit = api.load(flags["config"], run={"weight": flags["weight"], "ms_mode": flags["ms_mode"]})
    if flags["what"] == "drawing":
        print(json.dumps(drawing(toolkit)))
    else:
        for thing in (HUMBUG, CONFETTI):
            learning(toolkit, thing, flags["num_vectors"])


if __name__ == "__main__":
    command_line.run(main)
