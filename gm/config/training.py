"""Options of training: concept, data and training sections of `Config`."""

from __future__ import annotations

from dataclasses import dataclass

from gm.config.schema import MAX_SEED, Section, option

MAX_STEPS = 100_000_000
# Usual peak learning rates. That of direction is the paper's, for every model; that of adamw suits CLIP's token table.
LEARNING_RATES = {"adamw": 1e-3, "prodigy": 1.0, "direction": 0.04}


@dataclass(frozen=True)
class ConceptConfig(Section):
    """A concept to train. With `concepts`, these are the defaults of its entries."""

    data_path: str = option("", "folder with 3 to 20 training images", path="path")
    placeholder_token: str = option("<concept>", "token that stands for the concept in prompts; must not be one token")
    num_vectors: int = option(1, "embedding vectors per text encoder", minimum=1, maximum=1000)
    initializer_token: str | None = option(
        None, "word or phrase whose token embeddings are the initial vectors; default: random vectors"
    )
    cross_initialization: bool = option(
        False,
        "the initial vectors are the outputs of the text encoders for initializer_token or the mean of "
        "initializer_names_file, not the token embeddings: fewer steps for faces",
    )
    initializer_names_file: str | None = option(
        None,
        "text file of names, one per line, whose mean token embeddings are the initial vectors, for faces",
        path="path",
    )
    initializer_file: str | None = option(None, "embedding file whose vectors are the initial vectors", path="path")
    learnable_property: str = option(
        "object", "type of the concept, selects the prompt templates", choices=("object", "style", "face")
    )
    template_file: str | None = option(
        None, "text file of prompt templates, one per line, with {} for the placeholder token", path="path"
    )
    class_word: str | None = option(
        None, "class of the concept, put behind the placeholder token in templates and captions: a <cat-toy> toy"
    )
    repeats: int | None = option(
        None,
        "repeats of the images in an epoch; default: so many that all concepts have about the same number of images",
        minimum=1,
        maximum=100_000,
    )
    negative: bool = option(False, "train a concept for negative prompts, from the images of the other concepts")


@dataclass(frozen=True)
class DataConfig:
    """Training images and captions."""

    resolution: int | None = option(
        None, "side of the training images in pixels; default: that of the model", minimum=8, step=8, maximum=16384
    )
    center_crop: bool = option(
        True, "crop images to their center square or bucket; False squashes them to it, as diffusers' script does"
    )
    image_interpolation_mode: str = option(
        "lanczos", "filter that images are resized with", choices=("lanczos", "bicubic", "bilinear", "nearest", "box")
    )
    enable_bucket: bool = option(
        False, "aspect ratio bucketing: images keep about their shape; compiles one graph per size"
    )
    bucket_reso_steps: int = option(
        64, "sides of the bucket sizes are multiples of this, in pixels", minimum=8, step=8, maximum=16384
    )
    masks: bool = option(
        True,
        "weight the loss by masks: the alpha channel, or name.mask.png or name-masklabel.png next to an image; white is"
        " trained",
    )
    unmasked_weight: float = option(0.0, "loss weight of black mask areas", minimum=0.0, maximum=1.0)
    captions: bool = option(True, "use captions (name.txt or metadata.jsonl next to the images) instead of templates")
    template_probability: float = option(
        0.0, "probability of a template instead of the caption of an image", minimum=0.0, maximum=1.0
    )
    caption_dropout_rate: float = option(
        0.0, "probability of the placeholder token alone as the prompt", minimum=0.0, maximum=1.0
    )
    random_flip: bool = option(False, "flip images horizontally at random; not for faces or lettering")


@dataclass(frozen=True)
class TrainingConfig(Section):
    """Training loop, optimizer, checkpoints, logs and sample images."""

    save_path: str = option(
        "runs/concept", "output folder for embedding files, checkpoints, logs and sample images", path="path"
    )
    seed: int = option(42, "random seed of the run", minimum=0, maximum=MAX_SEED)
    total_step: int = option(
        3000, "training steps; a step is the forward and backward pass of one batch", minimum=1, maximum=MAX_STEPS
    )
    train_batch_size: int = option(1, "images per step and device", minimum=1, maximum=4096)
    gradient_accumulation_steps: int = option(1, "steps per optimizer update", minimum=1, maximum=100_000)
    learning_rate: float | None = option(
        None,
        "peak learning rate; default: that of the optimizer, "
        + ", ".join(f"{rate:g} for {name}" for name, rate in LEARNING_RATES.items()),
        minimum=0.0,
        maximum=1000.0,
    )
    learning_rate_clip_l: float | None = option(
        None,
        "peak learning rate of the CLIP-L vectors; 0 freezes them; default: learning_rate",
        minimum=0.0,
        maximum=1000.0,
    )
    learning_rate_clip_g: float | None = option(
        None,
        "peak learning rate of the OpenCLIP bigG vectors; 0 freezes them; default: learning_rate",
        minimum=0.0,
        maximum=1000.0,
    )
    learning_rate_clip_h: float | None = option(
        None,
        "peak learning rate of the vectors of SD 2's OpenCLIP ViT-H; default: learning_rate",
        minimum=0.0,
        maximum=1000.0,
    )
    scale_lr: bool = option(
        False, "multiply the learning rates by batch size, gradient accumulation steps and number of devices"
    )
    lr_scheduler: str = option(
        "constant",
        "learning rate schedule after the warm-up",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "one_cycle"),
        aliases=(),
    )
    lr_warmup_steps: int = option(0, "updates of linear warm-up", minimum=0, maximum=MAX_STEPS)
    lr_num_cycles: int = option(1, "cycles of cosine_with_restarts", minimum=1, maximum=1_000_000)
    lr_power: float = option(1.0, "exponent of the polynomial schedule", minimum=0.0, maximum=1000.0)
    optimizer: str = option(
        "adamw",
        "prodigy estimates the learning rate; direction trains the direction of each vector and fixes its norm",
        choices=("adamw", "prodigy", "direction"),
    )
    adam_beta1: float = option(0.9, "decay rate of the first moment", minimum=0.0, maximum=1.0)
    adam_beta2: float = option(0.999, "decay rate of the second moment", minimum=0.0, maximum=1.0)
    adam_epsilon: float = option(1e-8, "epsilon in the denominator of the update", minimum=0.0, maximum=1.0)
    weight_decay: float = option(
        0.0,
        "decoupled weight decay; best left at 0 for embeddings",
        minimum=0.0,
        aliases=("adam_weight_decay",),
        maximum=1000.0,
    )
    kappa: float = option(
        1e-4,
        "of optimizer direction: concentration of the prior towards the initial direction; 0 is none",
        minimum=0.0,
        maximum=1000.0,
    )
    beta: float = option(
        0.0,
        "of optimizer direction: decay rate of the squared gradient norm; 0 rotates by the same angle at every update",
        minimum=0.0,
        maximum=0.9999,
    )
    token_scale: str = option(
        "auto",
        "of optimizer direction: norm of the vectors: mean (of the token table), a number, or auto: mean, but where "
        "most of the table was never trained the mean of the words in the prompts",
    )
    preserve_embedding_norm: float = option(
        0.0,
        "after each update, move the norm of each vector this fraction of the way to the median norm of the tokens in "
        "the prompts",
        minimum=0.0,
        maximum=10.0,
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, slower steps"
    )
    max_grad_norm: float = option(1.0, "maximum global gradient norm; 0 disables clipping", minimum=0.0, maximum=1e9)
    resume: str | None = option(
        None, "resume from a training state: latest (the newest in --save_path, if any) or a path", path="path"
    )
    checkpointing_steps: int = option(
        50, "steps between training states; one is also saved at the end", minimum=1, maximum=MAX_STEPS
    )
    checkpoints_total_limit: int = option(
        2, "number of newest training states to keep; 0 keeps all", minimum=0, maximum=1_000_000
    )
    max_skipped_steps: int = option(
        25,
        "consecutive steps without a finite loss and gradient after which training stops",
        minimum=1,
        maximum=MAX_STEPS,
    )
    save_ckpt_interval: int = option(
        500, "steps between embedding files; one is also saved at the end", minimum=1, maximum=MAX_STEPS
    )
    learned_embeds: str = option(
        "",
        "also write diffusers' files: learned_embeds and learned_embeds-steps-<updates> of this suffix, "
        "checkpoint-<updates>, token_identifier.txt, type_of_concept.txt",
        choices=("", "safetensors", "bin"),
    )
    save_as_full_pipeline: bool = option(
        False,
        "after training, also write the base model with the placeholder tokens in it, as a diffusers folder in "
        "save_path; the weights must be a diffusers folder",
    )
    output_name: str | None = option(
        None, "also write the last embedding as this file in save_path, in kohya's format: cat.safetensors or cat.pt"
    )
    push_to_hub: bool = option(
        False, "after training, publish the embedding on the Hugging Face Hub (needs huggingface_hub and a login)"
    )
    hub_model_id: str | None = option(
        None, "repository for --push_to_hub; default: the name of save_path, under the user who is logged in"
    )
    num_validation_samples: int = option(
        0,
        "fixed samples for the validation loss; the best embedding is then saved too; 0 disables it",
        minimum=0,
        maximum=100_000,
    )
    validation_loss_interval: int = option(
        100, "steps between validation losses; also measured before and after training", minimum=1, maximum=MAX_STEPS
    )
    log_interval: int = option(1, "steps between records in log.jsonl", minimum=1, maximum=MAX_STEPS)
    tensorboard: bool = option(False, "log to TensorBoard (needs tensorboardX)")
    infer_during_train: bool = option(
        False, "generate sample images, with the options of the sampling section, at intervals and at the end"
    )
    infer_interval: int = option(500, "steps between sample images", minimum=1, maximum=MAX_STEPS)
    infer_prompt: str | None = option(
        None, "prompt of the sample images, {} is the placeholder token; default: the first template"
    )
    validation_prompts: list[str] = option(
        [],
        "more prompts for sample images, or a text file with one per line; each may end with --n negative prompt "
        "--d seed --w width --h height",
    )
    is_parallel: bool = option(False, "data parallel training in the processes that mpirun or msrun started")
    distributed_timeout: int | None = option(
        None,
        "seconds that a process waits for the others before it exits; default: 7200 on Ascend, 1800 on CPU",
        minimum=1,
        maximum=10_000_000,
    )

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, by default that of the optimizer."""
        return LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate
