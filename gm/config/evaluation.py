"""Options of the evaluation of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from gm.config.schema import Section, option

# Of SamplingConfig: what to generate, which the evaluation chooses itself, and how it is shown.
UNUSED_SAMPLING_OPTIONS = (
    *("task", "prompt", "num_cols", "num_rows", "img", "mask", "strength", "interactive", "preview_interval"),
    *("init_latent_path", "init_latent_index", "base_model"),
)


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Evaluation: prompts, real images and image encoders."""

    compare: list[str] = option(
        [],
        "embedding files to evaluate on the same noise, with paired differences from the first; each alone, beside "
        "those of textual_inversion_weight",
        path="path",
    )
    training_images: str = option(
        "", "folder with the training images; default: the one that the embedding file records", path="path"
    )
    held_out_images: str = option(
        "", "folder with images of the concept that it was not trained on, scored apart", path="path"
    )
    prompt_set: str = option(
        "",
        "editing prompts; default: by the type of the concept that the embedding file records",
        choices=("", "object", "live", "style"),
    )
    class_word: str | None = option(
        None,
        "class of the concept, such as dog: follows the placeholder token in prompts, and stands for it in CLIP-T's "
        "texts; default: the class word or initializer token that the embedding file records",
    )
    class_word_in_prompts: bool = option(
        True, "write the class word behind the placeholder token; False: prompts have the placeholder token alone"
    )
    reconstruction_prompts: str = option(
        "", "text file of plain prompts in place of the set's, one per line, with {} for the concept", path="path"
    )
    editability_prompts: str = option(
        "",
        "text file of editing prompts in place of the set's, one per line, with {} for the concept; what follows => "
        "is the text of CLIP-T",
        path="path",
    )
    num_seeds: int = option(4, "images of each prompt", minimum=1, maximum=1000)
    confidence: float = option(0.95, "confidence of the intervals", minimum=0.5, maximum=0.999)
    clip: str = option(
        "openai/clip-vit-base-patch32",
        "CLIP: a name on the Hugging Face Hub, or a folder; empty: no CLIP scores",
        path="path",
    )
    dino: str = option(
        "facebook/dino-vits16",
        "DINO or DINOv2 (facebook/dinov2-base): a name on the Hugging Face Hub, or a folder; empty: no DINO scores",
        path="path",
    )
