"""Everything about a training run that can be found wrong before the weights are read or a file is written."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from gm import atomic
from gm.concepts import initial
from gm.config import Config
from gm.data import folder, templates
from gm.data.folder import Picture
from gm.errors import UserError
from gm.text.tokenizer import Tokenizer
from gm.training import state
from gm.training.state import State

log = logging.getLogger("gm")


@dataclass(frozen=True)
class Plan:
    """The checked ingredients of a run."""

    config: Config
    pictures: list[Picture]
    prompts: tuple[str, ...]  # templates with the placeholder filled in
    preview: str  # prompt of the previews
    tokenizer: Tokenizer  # knows the placeholder
    initial_ids: list[int] | None  # tokens whose rows to start from, or None for random rows
    resumed: State | None = None  # what to go on from
    changed: dict[str, str] = field(default_factory=dict)  # options that differ from those it was made with

    @property
    def updates(self) -> int:
        """How many updates the run makes; steps left over at the end make one more."""
        training = self.config.training
        return -(-training.total_step // training.gradient_accumulation_steps)


def make(config: Config) -> Plan:
    """Read pictures and prompts; UserError names the first thing that is wrong with them."""
    concept = config.concept
    _check_levels(config)
    atomic.check_folder(config.training.save_path, "--save_path")
    resumed = state.find(config.training.resume, config.training.save_path)
    changed = {} if resumed is None else state.check(resumed, config)
    for name, change in changed.items():
        log.warning("--resume: %s was %s from here on", name, change)
    tokenizer = Tokenizer(config.model.text_encoder_1.positions)
    ids = None if concept.initializer_token is None else initial.token_ids(concept.initializer_token, tokenizer)
    if ids and len(ids) > concept.num_vectors:
        log.warning(
            "--initializer_token %r has %d tokens, of which --num_vectors %d uses the first %d",
            *(concept.initializer_token, len(ids), concept.num_vectors, concept.num_vectors),
        )
    tokenizer.add_placeholder(concept.placeholder_token, concept.num_vectors)
    lines = templates.load(concept.learnable_property, concept.template_file)
    prompts = tuple(templates.fill(line, concept.placeholder_token) for line in lines)
    preview = config.training.infer_prompt or lines[0]
    preview = templates.fill(preview, concept.placeholder_token)
    if not {*tokenizer.placeholders[concept.placeholder_token]} & {*tokenizer.encode(preview)}:
        raise UserError(f"--infer_prompt {preview!r} holds neither {{}} nor {concept.placeholder_token}; add one")
    tokenizer([*prompts, preview], padding=0)  # finds a prompt that has no room for the placeholder
    pictures = folder.read(config.data.data_path, config.data.resolution or config.model.resolution)
    return Plan(config, pictures, prompts, preview, tokenizer, ids, resumed, changed)


def _check_levels(config: Config) -> None:
    low, high, last = config.loss.timestep_min, config.loss.timestep_max, config.model.schedule.timesteps - 1
    high = last if high is None else high
    if not low <= high <= last:
        raise UserError(
            f"--timestep_min {low} and --timestep_max {high} leave no noise level; the model's are 0 to {last}"
        )
