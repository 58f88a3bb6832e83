"""A folder to share from a learned word: its files for every program, a card, images; and its way to the Hub.

python tools/push_to_hub.py --source runs/cat_toy/SD-XL-base-1.0_3000_ti.ckpt --target published/cat-toy \\
    --images outputs/image_00000.png --license openrail++ --push_to_hub me/cat-toy
"""

from __future__ import annotations

from typing import Any

from gm.config import cli
from gm.data.templates import TEMPLATES
from gm.hub import export, layout, upload


def main() -> None:
    flags = _flags()
    repo = flags["push_to_hub"]
    if repo:
        upload.check(repo)
    made = export.prepare(
        flags["source"],
        flags["images"],
        word=flags["placeholder_token"],
        kind=flags["type_of_concept"],
        prompt=flags["instance_prompt"],
        base_model=flags["base_model"],
        licence=flags["license"],
        repo=repo,
    )
    for path in layout.write(made, flags["target"], flags["overwrite"] == "true"):
        print(f"wrote {path}")
    if repo:
        print(f"pushed to {upload.push(flags['target'], layout.names(made), repo, flags['private'] == 'true')}")


def _flags() -> dict[str, Any]:
    parser = cli.Parser(
        "Make a folder to share from a learned word, and push it to the Hugging Face Hub.", ("source", "target")
    )
    parser.add_argument("--source", help="embedding file of any program that holds one word")
    parser.add_argument("--target", help="folder to make")
    parser.add_argument("--images", nargs="+", default=[], help="to show; those drawn here show their recipe, too")
    parser.add_argument("--placeholder_token", help="word to call it (default: the file's)")
    parser.add_argument(
        "--type_of_concept", choices=tuple(TEMPLATES), help="what it stands for (default: what it was learned as)"
    )
    parser.add_argument("--instance_prompt", help="a prompt that shows it (default: one that it was learned with)")
    parser.add_argument("--base_model", help="the Hub's name of the model (default: by the file's version)")
    parser.add_argument("--license", default="", help="by the Hub's name, such as openrail++ (default: none is given)")
    parser.add_argument("--push_to_hub", default="", help="user/name of a repository; needs huggingface_hub")
    parser.add_switch("--private", "make the repository one that only you see")
    parser.add_overwrite()
    return parser.read()


def entry_point() -> None:
    """Run `main` as the console script gm-push-to-hub does."""
    cli.run(main)


if __name__ == "__main__":
    entry_point()
