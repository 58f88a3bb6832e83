"""Terms of the training loss beside the diffusion loss, as functions of the embedding vectors."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gm.models.stable_diffusion import StableDiffusion

_DISTANCE_EPSILON = 1e-6  # as in PyTorch's pairwise_distance: the distance from a vector to itself has a gradient


def hidden_states(model: StableDiffusion, encoder: str, ids: Tensor) -> Tensor:
    """Return the states [N, 77, width] that a text encoder gives the UNet for prompts without placeholder tokens."""
    index = model.conditioner.names.index(encoder)
    unused = ops.zeros((1, model.config.text_encoders[encoder].width), ms.float32)
    states, _ = model.conditioner.embedders[index](ids, unused, ops.zeros((ids.shape[0],), ms.int32))
    return states


class ContextLoss(nn.Cell):
    """Context loss: distance of the tokens after a placeholder token from the same tokens after the class word.

    Mean over prompts and `encoders` of the mean over context tokens of 1 - cos(E(p), E(p_ref)), where E are the hidden
    states in the UNet's context, p has the placeholder token and p_ref the class word. It is the embedding part of
    Wu et al., 2024, "CoRe: Context-Regularized Text Embedding Learning for Text-to-Image Personalization"
    (https://arxiv.org/abs/2408.15914), whose second part compares attention maps.
    """

    def __init__(self, model: StableDiffusion, encoders: Sequence[str]) -> None:
        super().__init__(auto_prefix=False)
        self.embedders = model.conditioner.embedders
        self.indices = tuple(model.conditioner.names.index(encoder) for encoder in encoders)

    def construct(self, vectors: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Tensor:
        """Return the loss; `inputs` are those of `gm.training.context_prompts.ContextSampler`."""
        weights = inputs[0]
        unused_position = ops.zeros((weights.shape[0],), ms.int32)
        total = 0.0 * weights.sum()
        for j in range(len(self.indices)):
            k = self.indices[j]
            states, _ = self.embedders[k](inputs[1 + 2 * j], vectors[k], unused_position)
            states = ops.cast(states, ms.float32)
            norms = ops.sqrt((states * states).sum(axis=-1))
            cosines = (states * inputs[2 + 2 * j]).sum(axis=-1) / norms
            total = total + (weights * (1.0 - cosines)).sum(axis=-1).mean()
        return total / len(self.indices)


class InitialDistance(nn.Cell):
    """Mean distance of the vectors from the initial ones, over the text encoders.

    Cross Initialization adds it with the weight 1e-5 (Pang et al., 2024, https://arxiv.org/abs/2312.15905); it is
    PyTorch's `pairwise_distance`, with its epsilon.
    """

    def __init__(self, initial: dict[str, np.ndarray]) -> None:
        super().__init__(auto_prefix=False)
        self.initial = tuple(Tensor(each) for each in initial.values())

    def construct(self, vectors: tuple[Tensor, ...]) -> Tensor:
        total = 0.0 * vectors[0].sum()
        for k in range(len(self.initial)):
            difference = vectors[k] - self.initial[k] + _DISTANCE_EPSILON
            total = total + ops.sqrt((difference * difference).sum(axis=-1)).mean()
        return total / len(self.initial)
