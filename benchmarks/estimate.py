"""FLOPs and bytes of a training step and a sampling step, and an estimate of its time on an Ascend 910B.

    python benchmarks/estimate.py --size full --resolution 1024 --precision float16

Everything is counted from the config, nothing is measured: FLOPs as in `counting`, bytes as in `costs`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks import costs, report
from benchmarks.cases import SIZES
from benchmarks.costs import Cost
from gm import config as configuration
from gm.config import cli
from gm.config.model import ModelConfig

_PEAKS = (280e12, 376e12)  # stated FLOP/s of a 910B in dense float16, slowest and fastest variant
_EFFICIENCIES = (0.25, 0.40, 0.55)
_BANDWIDTH = 1.6e12  # bytes a second
_MINDONE = (
    "mindone publishes 447 to 553 ms, measured, for a LoRA step at 1024²: another kind of step, with the gradients of\n"
    "adapters instead of those of embedding vectors."
)


def main() -> None:
    parser = report.parser("Count FLOPs and bytes of training and sampling; estimate a step on Ascend.", "full")
    parser.add_argument("--config", help="YAML file whose model section is counted, instead of --size")
    parser.add_argument("--resolution", type=int, help="pixels a side (default: the model's own)")
    parser.add_argument("--batch", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--precision", default="float16", choices=list(costs.ITEMSIZE), help="(default: %(default)s)")
    flags = parser.read()
    model = configuration.load(flags["config"] or SIZES[flags["size"]].yaml).model
    pixels, batch, precision = flags["resolution"] or model.resolution, flags["batch"], flags["precision"]
    training = costs.training(model, pixels, batch, precision)
    sampling = costs.sampling(model, pixels, batch, precision)
    training["training step"] = costs.total(training)
    once = {"decoder": sampling.pop("decoder"), "encode an image": costs.encoding(model, pixels)}
    encoders = [name for name in sampling if name.startswith("encoder")]
    sampling["encoders, once an image"] = costs.total({name: sampling.pop(name) for name in encoders})
    sampling["sampling step (UNet)"] = sampling.pop("UNet")
    estimates = estimate(model, pixels, batch)
    text = "\n\n".join(
        [
            _table("training", training),
            _table("sampling, with guidance", {**sampling, **once}),
            _ascend(estimates, pixels, batch),
        ]
    )
    results: dict[str, Any] = {
        "case": {"version": model.version, "pixels": pixels, "batch": batch, "precision": precision},
        "training": {name: dataclasses.asdict(cost) for name, cost in training.items()},
        "sampling": {name: dataclasses.asdict(cost) for name, cost in {**sampling, **once}.items()},
        "estimated_on_ascend": estimates,
    }
    report.answer(
        flags["json"], f"Counted: {model.version}, {pixels} px, batch {batch}, {precision}", text, results, False
    )


def estimate(model: ModelConfig, pixels: int, batch: int) -> list[dict[str, Any]]:
    """Return estimates of a training step in float16 on a 910B, with and without flash attention and recomputation."""
    rows = []
    for flash in (True, False):
        for recompute in (False, True):
            cost = costs.total(costs.training(model, pixels, batch, "float16", flash, recompute))
            rows.append(
                {
                    "flash": flash,
                    "recompute": recompute,
                    "cost": dataclasses.asdict(cost),
                    "memory": cost.memory,
                    "milliseconds": {
                        f"{peak / 1e12:.0f} TFLOP/s at {share:.0%}": 1e3 * _seconds(cost, peak * share)
                        for peak in _PEAKS
                        for share in _EFFICIENCIES
                    },
                    "milliseconds_of_bandwidth": 1e3 * cost.moved / _BANDWIDTH,
                }
            )
    return rows


def _seconds(cost: Cost, speed: float) -> float:
    """Return the larger of the bounds by computing speed and by memory bandwidth."""
    return max(cost.flops / speed, cost.moved / _BANDWIDTH)


def _table(title: str, costs_by_name: dict[str, Cost]) -> str:
    header = [title, "GFLOP forward", "GFLOP backward", "weights GB", "saved GB", "moved GB"]
    rows = [
        [name, *(f"{flops / 1e9:.5g}" for flops in (c.forward, c.backward)), *map(_gb, (c.weights, c.saved, c.moved))]
        for name, c in costs_by_name.items()
    ]
    return report.table(header, rows)


def _ascend(estimates: list[dict[str, Any]], pixels: int, batch: int) -> str:
    columns = list(estimates[0]["milliseconds"])
    header = [
        "flash",
        "recompute",
        "GFLOP",
        "moved GB",
        "memory GB",
        *(c.replace(" TFLOP/s at ", "@") for c in columns),
    ]
    rows = [
        [
            *("yes" if row[name] else "no" for name in ("flash", "recompute")),
            f"{(row['cost']['forward'] + row['cost']['backward']) / 1e9:.4g}",
            *(_gb(value) for value in (row["cost"]["moved"], row["memory"])),
            *(f"{row['milliseconds'][column]:.3g} ms" for column in columns),
        ]
        for row in estimates
    ]
    bounds = ", ".join(f"{row['milliseconds_of_bandwidth']:.3g}" for row in estimates)
    return (
        f"ESTIMATED, not measured: a training step on an Ascend 910B, {pixels} px, batch {batch}, float16, at stated\n"
        f"peaks of 280 to 376 TFLOP/s and efficiencies of 25, 40 and 55 %. Memory is a lower bound: weights, saved\n"
        f"activations, the largest product. Reading and writing at 1.6 TB/s takes {bounds} ms.\n\n"
        f"{report.table(header, rows)}\n\n{_MINDONE}"
    )


def _gb(value: float) -> str:
    return f"{value / 1e9:.3g}"


if __name__ == "__main__":
    cli.run(main)
