"""Image encoders that compare images: CLIP with its text encoder, DINO and DINOv2, loaded from their published files.

They compute in float32 on every device: a score is a mean of many small differences.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters
from PIL import Image

from gm.checkpoints import containers, loading
from gm.checkpoints.lazy_tensor import LazyTensor
from gm.evaluation import encoder_configs, encoder_files, position_embeddings, preprocessing
from gm.evaluation.encoder_configs import CLIP, DINO, DINOV2
from gm.evaluation.encoder_files import PREPROCESSOR, EncoderFiles
from gm.evaluation.preprocessing import Preprocessing
from gm.models.clip import CLIPImageEncoder, CLIPTextProjection
from gm.models.dino import DINOImageEncoder
from gm.runtime import backend as backend_
from gm.runtime.backend import Backend
from gm.text.tokenizer import PADDING_IDS, Tokenizer, pool_positions

log = logging.getLogger("gm")

_BATCH = 8  # images or texts at once
_TEXT_KEYS = ("text_model.", "text_projection.")
_POSITIONS = ("embeddings.position_embeddings", "vision_model.embeddings.position_embedding.weight")
# Unused tensors of the published files: numbers 0, 1, 2, …; the temperature of CLIP's loss; heads of other tasks.
_COUNTS = re.compile(r".*\.position_ids")
_UNUSED = {
    CLIP: re.compile(r"logit_scale"),
    DINO: re.compile(r"(pooler|classifier)\..*|embeddings\.mask_token"),
    DINOV2: re.compile(r"classifier\..*|embeddings\.mask_token"),
}


@dataclass(frozen=True)
class ImageEncoder:
    """A loaded image encoder; `text` is CLIP's text encoder."""

    title: str
    source: str
    preprocessing: Preprocessing
    network: nn.Cell
    text: CLIPTextProjection | None = None

    def image_features(self, images: Sequence[Image.Image], backend: Backend) -> np.ndarray:
        """Return the features of images of mode RGB, float32 [N, width] of norm 1."""
        run = backend_.compile_cell(self.network, backend.graph, f"the image encoder of {self.title}")
        return _normalised(
            run(Tensor(np.stack([self.preprocessing(image) for image in batch]))).asnumpy()[:count]
            for batch, count in _batches(images)
        )

    def text_features(self, texts: Sequence[str], backend: Backend) -> np.ndarray:
        """Return CLIP's features of texts of at most 75 tokens (longer ones are cut), float32 [N, width] of norm 1."""
        assert self.text is not None
        run = backend_.compile_cell(self.text, backend.graph, f"the text encoder of {self.title}")
        tokenizer = Tokenizer()

        def encode(batch: Sequence[str]) -> np.ndarray:
            ids = tokenizer(batch, PADDING_IDS["clip_l"])
            features: np.ndarray = run(Tensor(ids), Tensor(pool_positions(ids, "end_of_text"))).asnumpy()
            return features

        return _normalised(encode(batch)[:count] for batch, count in _batches(texts))


def load_clip(option: str, name: str) -> ImageEncoder:
    """Load CLIP from the folder, file or Hub name that `option` gives; UserError for another or a damaged encoder."""
    files = encoder_files.find(option, name)
    steps = _preprocessing(files, (CLIP,))
    config = encoder_configs.clip_config(files.config, steps.size, files.config_path)
    with no_init_parameters():
        network, text = CLIPImageEncoder(config, ms.float32), CLIPTextProjection(config, ms.float32)
    tensors = _tensors(files, config.image.grid)
    of_text = {key: tensor for key, tensor in tensors.items() if key.startswith(_TEXT_KEYS)}
    of_images = {key: tensor for key, tensor in tensors.items() if key not in of_text}
    for cell, part in ((network, of_images), (text, of_text)):
        loading.load_tensors(cell.set_train(False), part, str(files.weights))
    log.info("loaded %s", files.weights)
    return ImageEncoder(encoder_configs.title(files.config), name, steps, network, text)


def load_dino(option: str, name: str) -> ImageEncoder:
    """Load DINO or DINOv2; as `load_clip`."""
    files = encoder_files.find(option, name)
    steps = _preprocessing(files, (DINO, DINOV2))
    config = encoder_configs.dino_config(files.config, steps.size, files.config_path)
    with no_init_parameters():
        network = DINOImageEncoder(config, ms.float32)
    loading.load_tensors(network.set_train(False), _tensors(files, config.grid), str(files.weights))
    log.info("loaded %s", files.weights)
    return ImageEncoder(encoder_configs.title(files.config), name, steps, network)


def _preprocessing(files: EncoderFiles, kinds: tuple[str, ...]) -> Preprocessing:
    kind = encoder_configs.check_kind(files.config, kinds, files.config_path)
    return preprocessing.read(files.preprocessor, kind, files.weights.parent / PREPROCESSOR)


def _tensors(files: EncoderFiles, grid: int) -> dict[str, LazyTensor]:
    """Return the tensors of the networks by published name, position embeddings for `grid` × `grid` patches."""
    kind = files.config["model_type"]
    stored = containers.read_weights(files.weights).tensors
    # Models with a head for some task have the encoder behind a prefix, such as `vit.`
    prefix = f"{kind}." if any(key.startswith(f"{kind}.") for key in stored) else ""
    tensors = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if not _COUNTS.fullmatch(key)}
    unused = [key for key in tensors if _UNUSED[kind].fullmatch(key)]
    if unused:
        log.info("%s: not used: %s", files.weights, ", ".join(unused))
    return {
        key: position_embeddings.resized(tensor, grid) if key in _POSITIONS else tensor
        for key, tensor in tensors.items()
        if key not in unused
    }


def _batches(items: Sequence) -> Iterator[tuple[list, int]]:
    """Yield batches of one size with the number that counts; the last is filled up, so that one graph serves all."""
    size = min(_BATCH, len(items))
    for first in range(0, len(items), size):
        batch = list(items[first : first + size])
        yield batch + batch[-1:] * (size - len(batch)), len(batch)


def _normalised(batches: Iterator[np.ndarray]) -> np.ndarray:
    features = np.concatenate(list(batches)).astype(np.float32)
    norms: np.ndarray = np.linalg.norm(features, axis=1, keepdims=True)
    return features / norms
