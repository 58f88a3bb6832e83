"""Options of the page Train: the concept, the steps, and under "Advanced" what few need."""

from __future__ import annotations

import dataclasses
from typing import Any

import streamlit as st

from demo.app import plain
from demo.app.options import Accepts, between, persistent_key
from demo.app.server import limits
from demo.app.sidebar import ModelSelection
from gm.config import ConceptConfig, Config, DataConfig, LossConfig, TrainingConfig, schema
from gm.config.training import LEARNING_RATES
from gm.data import templates
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer, check_placeholder
from gm.training import optimizer_options

PROPERTIES = ("object", "style", "face")
_SECTIONS: dict[str, type] = {
    "concept": ConceptConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "loss": LossConfig,
}
# Section and label of each option under "Advanced", in the words of kohya's and diffusers' scripts.
ADVANCED: dict[str, dict[str, tuple[str, str]]] = {
    "Optimizer": {
        "optimizer": ("training", "Optimizer"),
        "lr_scheduler": ("training", "LR scheduler"),
        "lr_warmup_steps": ("training", "LR warmup steps"),
        "train_batch_size": ("training", "Batch size"),
        "gradient_accumulation_steps": ("training", "Gradient accumulation steps"),
        "min_snr_gamma": ("loss", "Min-SNR gamma"),
    },
    "Images and captions": {
        "resolution": ("data", "Resolution"),
        "enable_bucket": ("data", "Aspect ratio buckets"),
        "center_crop": ("data", "Center crop"),
        "random_flip": ("data", "Random flip"),
        "captions": ("data", "Use captions"),
        "caption_dropout_rate": ("data", "Caption dropout rate"),
        "class_word": ("concept", "Class word"),
    },
    "Run": {
        "seed": ("training", "Training seed"),
        "num_validation_samples": ("training", "Validation samples"),
        "validation_loss_interval": ("training", "Validation interval"),
        "infer_prompt": ("training", "Preview prompt"),
    },
}
LABELS = {
    "placeholder_token": "Placeholder token",
    "learnable_property": "Learnable property",
    "initializer_token": "Initializer token",
    "num_vectors": "Num vectors",
    "total_step": "Steps",
    "learning_rate": "Learning rate",
    "infer_interval": "Preview interval",
    **{name: label for group in ADVANCED.values() for name, (_, label) in group.items()},
}


def name_boxes(text: str) -> str:
    """Return a message of the command line with the labels of this page in place of its flags."""
    for name, label in sorted(LABELS.items(), key=lambda item: -len(item[0])):
        text = text.replace(f"--{name}", label)
    return text


def concept(selection: ModelSelection) -> dict[str, Any]:
    """Show the options that every run needs; return them by name."""
    training, defaults = selection.config.training, selection.config.concept
    version = selection.config.model.version
    token = st.text_input(
        LABELS["placeholder_token"],
        key=persistent_key("placeholder token", "<my-thing>"),
        help="the concept's name in prompts; must not be a token of the model already",
    ).strip()
    check_token(token, selection.placeholder_tokens)
    left, right = st.columns(2)
    learnable_property = left.selectbox(
        LABELS["learnable_property"],
        PROPERTIES,
        key=persistent_key("learnable property", "object", PROPERTIES.__contains__),
        help="what the images share",
    )
    initializer = right.text_input(
        LABELS["initializer_token"],
        key=persistent_key("initializer token", ""),
        help="a word the model knows, such as toy; empty starts from random vectors",
    ).strip()
    vectors_key = persistent_key(f"num vectors of {version}", defaults.num_vectors, between(1, 75))
    help_ = "embedding vectors per text encoder"
    num_vectors = int(left.number_input(LABELS["num_vectors"], 1, 75, key=vectors_key, help=help_))
    steps_key = persistent_key(f"steps of {version}", training.total_step, between(1, 100000))
    steps = int(right.number_input(LABELS["total_step"], 1, 100000, key=steps_key))
    rate_key = _learning_rate_key(selection)
    learning_rate = left.number_input(LABELS["learning_rate"], 0.0, 10.0, format="%g", key=rate_key)
    interval_key = persistent_key(f"preview interval of {steps}", max(steps // 4, 1), between(1, 100000))
    help_ = "steps between preview images, each with an embedding file"
    preview_interval = int(right.number_input(LABELS["infer_interval"], 1, 100000, key=interval_key, help=help_))
    if initializer:
        _check_initializer(initializer, num_vectors)
    options = {
        "placeholder_token": token,
        "learnable_property": learnable_property,
        "num_vectors": num_vectors,
        "total_step": steps,
        "learning_rate": learning_rate,
        "infer_during_train": True,
        "infer_interval": preview_interval,
        "save_ckpt_interval": min(preview_interval, training.save_ckpt_interval),
    }
    return options | ({"initializer_token": initializer} if initializer else {})


def advanced(selection: ModelSelection) -> dict[str, Any]:
    """Show the other options; return those by name that differ from the model's config."""
    changed: dict[str, Any] = {}
    with st.expander("Advanced"):
        for tab, (_, names) in zip(st.tabs(list(ADVANCED)), ADVANCED.items(), strict=True):
            with tab:
                columns = st.columns(2)
                for number, (name, (section, label)) in enumerate(names.items()):
                    default = getattr(getattr(selection.config, section), name)
                    with columns[number % 2]:
                        value = _widget(_SECTIONS[section], name, label, _key(name, selection), default)
                    if value != default:
                        changed[name] = value
    return changed


def value(name: str, selection: ModelSelection) -> Any:
    """Return the value of an option under "Advanced", also before its widget is shown."""
    section = next(group[name][0] for group in ADVANCED.values() if name in group)
    default = getattr(getattr(selection.config, section), name)
    typed = st.session_state.get(_key(name, selection), default)
    return typed if _accepts(_SECTIONS[section], name)(typed) else default


def check(config: Config, options: dict[str, Any]) -> None:
    """Raise UserError for options that a run would refuse before it reads an image."""
    limits.check_training(options)
    section_of = {f.name: section for section, kind in _SECTIONS.items() for f in dataclasses.fields(kind)}
    sections: dict[str, dict[str, Any]] = {}
    for name, option in options.items():
        if name in section_of:
            sections.setdefault(section_of[name], {})[name] = option
    for section, values in sections.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
    schema.check_limits(config)
    optimizer_options.check(config.training, config.model.text_encoders)
    Tokenizer(config.model.context_length).add_placeholder(config.concept.placeholder_token, config.concept.num_vectors)


def check_token(token: str, selected: list[str]) -> None:
    """Show what is wrong with a placeholder token, if anything."""
    try:
        name = check_placeholder(token)
    except UserError as error:
        plain.error(error)
        return
    if any(name == check_placeholder(other) for other in selected):
        plain.caption(f"A selected embedding has the name {token} already; both cannot be used in one prompt.")


def example_prompt(options: dict[str, Any]) -> str:
    """Return the prompt with which training shows an image without a caption: the first template."""
    template = templates.TEMPLATES[options["learnable_property"]][0]
    return templates.fill(template, options["placeholder_token"], options.get("class_word"))


def _check_initializer(initializer: str, num_vectors: int) -> None:
    count = len(Tokenizer().encode(initializer))
    if not count:
        plain.error(f"{initializer} has no tokens of the model; give a word, or leave the box empty")
    elif count > num_vectors:
        plain.warning(f"{initializer} has {count} tokens of the model; the first {num_vectors} are used, one a vector.")


def _learning_rate_key(selection: ModelSelection) -> str:
    """Return the key of the learning rate: each kind of optimizer has a rate of its own that is usual.

    That of AdamW depends on the model: a rate in the model's config counts for it, as on the command line.
    """
    training, version = selection.config.training, selection.config.model.version
    optimizer = value("optimizer", selection)
    accepts = between(0.0, 10.0, float)
    if optimizer == training.optimizer:
        return persistent_key(f"learning rate of {version}", training.peak_learning_rate, accepts)
    rate = LEARNING_RATES[optimizer]
    if optimizer == "adamw" and training.learning_rate is not None:
        rate = training.learning_rate
    return persistent_key(f"learning rate of {version}, {optimizer}", rate, accepts)


def _key(name: str, selection: ModelSelection) -> str:
    return f"option training {name} of {selection.config.model.version}"


def _widget(section: type, name: str, label: str, key: str, default: Any) -> Any:
    """Show the widget of an option and return its value."""
    metadata = next(f for f in dataclasses.fields(section) if f.name == name).metadata
    kind, optional = schema.option_type(section, name)
    persistent_key(key.removeprefix("option "), default, _accepts(section, name))
    shared: dict[str, Any] = {"label": label, "key": key, "help": plain.escape(metadata["doc"])}
    if metadata["choices"]:
        return st.selectbox(options=metadata["choices"], **shared)
    if kind is bool:
        return st.checkbox(**shared)
    if kind is str:
        text = st.text_input(placeholder="default" if optional else "", **shared)
        return (text or "").strip() or None
    low, high = _limits(name, metadata)
    step = metadata["step"] if kind is int else None
    number = st.number_input(
        min_value=kind(low),
        max_value=kind(high),
        step=step,
        format=None if kind is int else "%g",
        placeholder="default",
        **shared,
    )
    return None if number is None else kind(number)


def _limits(name: str, metadata: Any) -> tuple[float, float]:
    return metadata["minimum"], min(metadata["maximum"], limits.MAXIMA.get(name, 2**53 - 1))


def _accepts(section: type, name: str) -> Accepts:
    """Return whether the widget of an option can have a value."""
    metadata = next(f for f in dataclasses.fields(section) if f.name == name).metadata
    kind, optional = schema.option_type(section, name)
    if metadata["choices"]:
        return metadata["choices"].__contains__
    if kind is bool:
        return lambda value: isinstance(value, bool)
    if kind is str:
        return lambda value: value is None or isinstance(value, str)
    is_number = between(*_limits(name, metadata), kind)
    return lambda value: (optional and value is None) or is_number(value)
