"""Contents of an embedding file of any program."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from gm.embeddings.embedding import NO_POOLING
from gm.embeddings.encoders import CLIP_H, EncoderVectors
from gm.embeddings.formats import FORMATS, TokenVectors
from gm.embeddings.metadata import merge_metadata, other_metadata, token_metadata

_SDXL = "stable-diffusion-xl"  # how the modelspec names of SDXL begin
_SDXL_FORMATS = ("mindspore", "clip", "cog")  # whose vectors of one text encoder were trained on SDXL


@dataclass(frozen=True)
class EmbeddingFile:
    """Contents of an embedding file: format name, vectors by placeholder token and encoder, other entries by key.

    program, default_pooling: who wrote the file, and the pooling rule where the metadata have none ("": the format's);
    unused: keys of tensors that are not ours; remarks: messages for the user, without the file's path
    """

    format: str
    vectors: TokenVectors
    metadata: dict[str, Any] = field(default_factory=dict)
    program: str = ""
    default_pooling: str = ""
    unused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def is_of_sd(self, vectors: EncoderVectors) -> bool:
        """Return whether `vectors` are those of Stable Diffusion 1 or 2, and not of SDXL's text encoder 1 alone."""
        return list(vectors) == [CLIP_H] or (list(vectors) == ["clip_l"] and not self.is_of_sdxl(vectors))

    def is_of_sdxl(self, vectors: EncoderVectors) -> bool:
        """Return whether the file says that `vectors` were trained on SDXL, or has them in a format of SDXL alone."""
        architecture = str(self.metadata.get("modelspec.architecture", ""))
        if architecture:
            return architecture.startswith(_SDXL)
        return self.format in _SDXL_FORMATS or "clip_g" in vectors

    def token_metadata(self, token: str | None) -> dict[str, str]:
        """Return the metadata of one placeholder token: "pooling", and "details" if there are any.

        Without an entry the pooling rule is that of the program; vectors of Stable Diffusion 2 have none.
        """
        default = self.default_pooling or FORMATS[self.format].pooling
        is_of_sd2 = list(self.vectors.get(token, ())) == [CLIP_H]
        return token_metadata(self.metadata, token, NO_POOLING if is_of_sd2 else default)

    def other_metadata(self, token: str | None) -> dict[str, Any]:
        """Return the entries of other programs for one placeholder token, such as `modelspec.author`."""
        others = other_metadata(self.metadata, token)
        return {key: value for key, value in others.items() if (key, value) != ("name", token)}  # AUTOMATIC1111's

    def metadata_entry(self, token: str | None) -> dict[str, Any]:
        """Return all metadata of one placeholder token as `merge_metadata` takes them."""
        return {**self.token_metadata(token), **self.other_metadata(token)}

    def with_pooling(self, rule: str) -> EmbeddingFile:
        """Return the file with `rule` as the pooling rule of every embedding."""
        entries = {token or "": {**self.metadata_entry(token), "pooling": rule} for token in self.vectors}
        unchanged = {key: self.metadata[key] for key in ("placeholder_token", "num_vectors") if key in self.metadata}
        return dataclasses.replace(self, metadata=unchanged | merge_metadata(entries))
