"""Figure of the model card: the training losses.

python examples/tiny_sdxl/loss_curves.py --source checkpoints/tiny_sd_xl_base_curves.json
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

from gm.config import cli
from gm.config.parser import Parser

matplotlib.use("agg")
import matplotlib.pyplot as plt

_TITLES = {"autoencoder": "autoencoder: error, sharpness and KL", "diffusion": "UNet and encoders: error of the noise"}


def plot(curves: Mapping[str, Sequence[float]], every: int, target: Path) -> None:
    """Write a figure of `curves`, whose values are means of `every` updates."""
    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3), layout="constrained")
    for axis, (name, values) in zip(axes, curves.items(), strict=True):
        axis.plot([every * (k + 1) for k in range(len(values))], values, linewidth=1)
        axis.set(title=_TITLES[name], xlabel="update", yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = Parser("Plot the figure of the model card: the training losses.")
    parser.add_path(
        "--source",
        "(default: %(default)s)",
        default="checkpoints/tiny_sd_xl_base_curves.json",
    )
    parser.add_path("--target", "(default: %(default)s)", default="docs/images/tiny_model_curves.png")
    flags = parser.read()
    recorded = json.loads(Path(flags["source"]).read_text())
    plot({name: recorded[name] for name in _TITLES}, recorded["every"], Path(flags["target"]))


if __name__ == "__main__":
    cli.run(main)
