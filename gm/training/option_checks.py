"""Options of training that are allowed alone and do nothing together; each is a warning."""

from __future__ import annotations

from collections.abc import Iterator

from gm.config import ConceptConfig, Config, TrainingConfig
from gm.config.unused import Rule, messages
from gm.training import lr_schedule

_RULES = (
    Rule(
        "training",
        ("lr_num_cycles",),
        "--lr_scheduler cosine_with_restarts",
        lambda config: config.training.lr_scheduler == "cosine_with_restarts",
    ),
    Rule(
        "training",
        ("lr_power",),
        "--lr_scheduler polynomial",
        lambda config: config.training.lr_scheduler == "polynomial",
    ),
    Rule(
        "training",
        ("infer_prompt", "validation_prompts"),
        "--infer_during_train",
        lambda config: config.training.infer_during_train,
    ),
    Rule(
        "training",
        ("kappa", "beta", "token_scale"),
        "--optimizer direction",
        lambda config: config.training.optimizer == "direction",
    ),
    Rule("training", ("hub_model_id",), "--push_to_hub", lambda config: config.training.push_to_hub),
    Rule("training", ("distributed_timeout",), "--is_parallel", lambda config: config.training.is_parallel),
    Rule("loss", ("huber_c",), "--loss_type huber", lambda config: config.loss.loss_type == "huber"),
    Rule(
        "loss",
        ("scale_v_pred_loss_like_noise_pred",),
        "a model of prediction v_prediction",
        lambda config: config.model.schedule.prediction == "v_prediction",
    ),
    Rule(
        "loss",
        ("negative_guidance",),
        "a negative concept",
        lambda config: any(concept.negative for concept in config.concepts),
    ),
    Rule(
        "loss",
        ("context_prompt_file", "context_encoders"),
        "--context_loss_weight",
        lambda config: config.loss.context_loss_weight > 0,
    ),
    Rule("data", ("bucket_reso_steps",), "--enable_bucket", lambda config: config.data.enable_bucket),
    Rule("data", ("unmasked_weight",), "--masks", lambda config: config.data.masks),
    Rule("data", ("template_probability",), "--captions", lambda config: config.data.captions),
)
_MIN_FACTOR = 0.5  # a schedule whose highest rate is below this fraction of the peak is reported
_SHORT_RUN = 1000  # updates


def ineffective_options(
    config: Config, num_updates: int, has_masks: bool = True, has_captions: bool = True
) -> Iterator[str]:
    """Yield a sentence for each option that has no effect in a run of `num_updates`, or takes it from others.

    `has_masks`, `has_captions`: whether any training image has one.
    """
    yield from messages(config, _RULES)
    training = config.training
    yield from _learning_rate(training, list(config.model.text_encoders))
    yield from _schedule(training, num_updates)
    if training.gradient_accumulation_steps > training.total_step:
        yield (
            f"--gradient_accumulation_steps {training.gradient_accumulation_steps} is more than --total_step "
            f"{training.total_step}: there is a single update, at the end, of those steps"
        )
    yield from _data(config, has_masks, has_captions)
    for concept in config.concepts or [config.concept]:
        yield from _concept(concept)
        if concept.cross_initialization and training.optimizer == "direction":
            yield (
                f"--cross_initialization gives the vectors of {concept.placeholder_token} their direction alone: "
                "--optimizer direction fixes their norm; --optimizer adamw trains both"
            )


def _learning_rate(training: TrainingConfig, encoders: list[str]) -> Iterator[str]:
    rates = lr_schedule.peak_learning_rates(training, encoders)
    if not any(rates):
        yield "the learning rate is 0: no vector is trained"
    options = [f"learning_rate_{name}" for name in encoders]
    overridden = all(getattr(training, option) is not None for option in options)
    if overridden and training.learning_rate is not None:
        replace = "replace it in both text encoders" if len(options) > 1 else "replaces it"
        yield (f"--learning_rate {training.learning_rate:g} has no effect: --{' and --'.join(options)} {replace}")


def _schedule(training: TrainingConfig, num_updates: int) -> Iterator[str]:
    warmup = training.lr_warmup_steps
    if warmup >= num_updates:
        yield (
            f"--lr_warmup_steps {warmup} is not less than the run's {num_updates} updates (--total_step "
            f"{training.total_step} in groups of {training.gradient_accumulation_steps}): the learning rate never "
            f"reaches its peak, and --lr_scheduler {training.lr_scheduler} does not begin"
        )
        return
    if training.lr_scheduler == "cosine_with_restarts" and training.lr_num_cycles >= num_updates - warmup > 1:
        yield (
            f"--lr_num_cycles {training.lr_num_cycles} is a cycle for every update of {num_updates - warmup}: the "
            "learning rate never falls"
        )
    if num_updates > _SHORT_RUN:
        return  # one of its updates is near the peak
    highest = max(lr_schedule.factor(update, num_updates, training) for update in range(num_updates))
    if highest < _MIN_FACTOR:
        yield (
            f"--lr_scheduler {training.lr_scheduler} over {num_updates} updates reaches {highest:.2g} of the learning "
            "rate at most; use another schedule, or more steps"
        )


def _data(config: Config, has_masks: bool, has_captions: bool) -> Iterator[str]:
    data = config.data
    if data.unmasked_weight and data.masks and not has_masks:
        yield f"--unmasked_weight {data.unmasked_weight:g} has no effect: no training image has a mask"
    if data.caption_dropout_rate == 1:
        yield "--caption_dropout_rate 1 trains on the placeholder token alone: no template or caption is used"
    elif data.template_probability and data.captions and not has_captions:
        yield f"--template_probability {data.template_probability:g} has no effect: no training image has a caption"
    elif data.template_probability == 1 and data.captions:
        yield "--template_probability 1 leaves no caption; --captions False says the same"


def _concept(concept: ConceptConfig) -> Iterator[str]:
    default = ConceptConfig()
    if concept.negative:
        for name in ("learnable_property", "template_file", "class_word", "repeats"):
            value = getattr(concept, name)
            if value != getattr(default, name):
                yield f"--{name} {value} has no effect for {concept.placeholder_token}, a negative concept"
    elif concept.template_file is not None and concept.learnable_property != default.learnable_property:
        yield (
            f"--learnable_property {concept.learnable_property} has no effect on the prompts of "
            f"{concept.placeholder_token}: --template_file has the templates"
        )
