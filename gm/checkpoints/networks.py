"""Networks of a model from files of their own (`--unet`, `--vae`), and what to say of a checkpoint that lacks one.

Such a file is the network alone, with the keys of the published single file (with or without their prefix) or of
diffusers, a whole checkpoint, or a diffusers folder of the network or of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gm.checkpoints import containers, detect, diffusers_format, reader, variants
from gm.checkpoints.containers import TensorFile
from gm.checkpoints.detect import detect_other_model
from gm.checkpoints.diffusers_format import Tensors
from gm.checkpoints.key_mapping import ParameterShapes
from gm.checkpoints.misfit import Misfit, shorten_keys
from gm.config.model import FAMILIES, ModelConfig
from gm.errors import UserError, did_you_mean

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Network:
    """A network that may come from a file of its own: its prefix in the published file, and others' prefixes.

    essential: keys that only a whole network has, without prefix, as published and of diffusers
    unused: keys beside it that training leaves, without prefix
    """

    title: str
    prefix: str
    other_prefixes: tuple[str, ...]
    convert: Callable[[Tensors, ModelConfig], Tensors]
    essential: tuple[str, ...]
    unused: tuple[str, ...] = ()


NETWORKS = {
    "unet": Network(
        "UNet",
        "model.diffusion_model.",
        ("unet.", "diffusion_model."),
        diffusers_format.convert_unet,
        ("output_blocks.", "up_blocks."),
    ),
    "vae": Network(
        "VAE",
        "first_stage_model.",
        ("vae.",),
        diffusers_format.convert_vae,
        ("decoder.",),
        ("loss.", "model_ema."),  # the discriminator and the averages of a training
    ),
}
# Published VAEs; Stable Diffusion 1 and 2 have the same latents.
_VAES = {"sdxl": "sdxl_vae.safetensors"} | dict.fromkeys(("sd1", "sd2"), "vae-ft-mse-840000-ema-pruned.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The files of a model's weights: the checkpoint, and by name in NETWORKS those of single networks."""

    checkpoint: str | Path
    networks: Mapping[str, str | Path] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        """All files, the checkpoint first."""
        return [str(self.checkpoint), *(f"--{network} {path}" for network, path in self.networks.items())]

    def source(self, name: str) -> str:
        """Return the file of the parameter `name`."""
        for network, path in self.networks.items():
            if name.startswith(NETWORKS[network].prefix):
                return str(path)
        return str(self.checkpoint)


def check_paths(networks: Mapping[str, str | Path]) -> None:
    """Raise UserError for the file of a network that does not exist."""
    for network, path in networks.items():
        if not Path(path).exists():
            near = [entry.name for entry in Path(path).parent.iterdir()] if Path(path).parent.is_dir() else []
            raise UserError(
                f"--{network} {path} does not exist{did_you_mean(Path(path).name, near)}; it names a file of the "
                f"{NETWORKS[network].title}, or a diffusers folder"
            )


def without(tensors: Tensors, networks: Mapping[str, object]) -> Tensors:
    """Return `tensors` of a checkpoint without those of `networks`."""
    prefixes = tuple(NETWORKS[network].prefix for network in networks)
    return {key: tensor for key, tensor in tensors.items() if not (prefixes and key.startswith(prefixes))}


def read(network: str, path: str | Path, shapes: ParameterShapes, config: ModelConfig) -> Tensors:
    """Return the tensors of one of NETWORKS by the names in `shapes`, which are those of the whole model.

    Raises UserError for a file that cannot be read, does not hold the network, or holds one of another shape.
    """
    kind = NETWORKS[network]
    path = Path(path)
    file = _read(network, path)
    reader.check_network(network, path, file, config)
    _check_family(network, path, file, config)
    tensors = _without_prefix(kind, file.tensors)
    unused = [key for key in tensors if key.startswith(kind.unused)] if kind.unused else []
    if unused:
        log.info("%s: %d tensors beside the %s are not used (%s)", path, len(unused), kind.title, shorten_keys(unused))
    tensors = {key: tensor for key, tensor in tensors.items() if key not in set(unused)}
    own_shapes = {name: shape for name, shape in shapes.items() if name.startswith(kind.prefix)}
    published, left_out = variants.to_published_layout(kind.convert(tensors, config), own_shapes)
    if left_out:
        log.info("%s: not used: %s", path, "; ".join(left_out))
    _check(network, path, own_shapes, published, detect.model_kind(config))
    return published


def check_present(tensors: Tensors, files: WeightFiles, shapes: ParameterShapes, config: ModelConfig) -> None:
    """Raise UserError if the checkpoint is one network alone, or lacks a whole one: the option that gives it is named.

    Models of another kind than that of `config` are left to `loading.check_tensors`.
    """
    for name, network in NETWORKS.items():
        if any(key.startswith(network.essential) for key in tensors):
            raise UserError(
                f"{files.checkpoint} is a {network.title} alone: give it with --{name}, and a whole checkpoint of the "
                "model in its place"
            )
    if detect_other_model(tensors, detect.model_kind(config)):
        return
    # A constant may stand in for logit_scale, which says nothing of the encoders.
    keys = [key for key in tensors if not key.endswith(".logit_scale")]
    text_encoders = config.traits.text_encoder_prefix.partition(".")[0] + "."
    known = [*(network.prefix for network in NETWORKS.values()), text_encoders]
    prefixes = [prefix for prefix in known if any(name.startswith(prefix) for name in shapes)]
    present = {prefix: any(key.startswith(prefix) for key in keys) for prefix in prefixes}
    if not any(present.values()):
        return
    for name, network in NETWORKS.items():
        if not present.get(network.prefix, True):
            example = f", such as {_VAES[config.family]}" if name == "vae" else ""
            raise UserError(f"{files.checkpoint} has no {network.title}; give one with --{name}{example}")
    if not present[text_encoders]:
        flags = " and ".join(f"--{name}" for name, network in NETWORKS.items() if name not in files.networks)
        raise UserError(
            f"{files.checkpoint} has no text encoders: give it with {flags or 'the option of its network'}, and a "
            "whole checkpoint of the model in its place"
        )


def _check_family(network: str, path: Path, file: TensorFile, config: ModelConfig) -> None:
    """Raise UserError if a whole checkpoint is of a family whose network is another than that of `config`."""
    kind = detect.family_of_text_encoder({key: tensor.shape for key, tensor in file.tensors.items()})
    family = {"base": "sdxl", "refiner": "sdxl"}.get(kind, kind)
    if config.family == "sdxl" and any(key.startswith("cond_stage_model.") for key in file.tensors):
        raise UserError(
            f"--{network} {path} is Stable Diffusion 1 or 2, whose {NETWORKS[network].title} is another; give that of "
            "an SDXL model"
        )
    if not family or family == config.family or (network == "vae" and _VAES[family] == _VAES[config.family]):
        return
    title, expected = FAMILIES[family].title, config.traits.title
    raise UserError(
        f"--{network} {path} is {title}, whose {NETWORKS[network].title} is another; give that of a model of {expected}"
    )


def _read(network: str, path: Path) -> TensorFile:
    """Return the contents of a file, or of a diffusers folder of the network or of a model that has it."""
    if not path.is_dir():
        return containers.read_weights(path)
    return TensorFile(diffusers_format.read_network(path / network if (path / network).is_dir() else path), {})


def _without_prefix(network: Network, tensors: Tensors) -> Tensors:
    """Return the tensors of the network without their prefix; a file that has no prefix is the network alone."""
    for prefix in (network.prefix, *network.other_prefixes):
        selected = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if selected:
            return selected
    return tensors


def _check(network: str, path: Path, shapes: ParameterShapes, tensors: Tensors, kind: str) -> None:
    """Raise UserError if the `tensors` of a network are not those of `shapes`."""
    prefix, title = NETWORKS[network].prefix, NETWORKS[network].title
    misfit = Misfit.of(shapes, tensors)
    if len(misfit.missing) == len(shapes):
        other = detect_other_model([name.removeprefix(prefix) for name in tensors], kind)
        raise UserError(f"--{network} {path} holds no {title}" + (f": it seems to be {other}" if other else ""))
    if misfit:
        raise UserError(
            f"--{network} {path} is not the {title} of this model: {misfit.explain(kind)}; {misfit.counts()}"
        )
