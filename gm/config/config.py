"""All options as one `Config`, whose sections are the dataclasses of this package.

YAML files, command-line flags and their help follow these dataclasses. Values are merged in the order defaults < YAML
file < command line. The default model is SDXL base 1.0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gm.config import schema, yaml_files
from gm.config.evaluation import EvaluationConfig
from gm.config.loss import LossConfig
from gm.config.model import ModelConfig
from gm.config.run import POOLING_RULES, RunConfig
from gm.config.sampling import SamplingConfig
from gm.config.schema import option
from gm.config.training import ConceptConfig, DataConfig, TrainingConfig
from gm.errors import UserError


@dataclass(frozen=True)
class Config:
    """Everything. A YAML file has these sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    run: RunConfig = field(default_factory=RunConfig)
    concept: ConceptConfig = field(default_factory=ConceptConfig)
    concepts: list[ConceptConfig] = option(
        [],
        "several concepts: YAML mappings such as {placeholder_token: <a>, data_path: folder}, or a YAML file with a "
        "list of them; options left out are those of the flags",
    )
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def load(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return defaults < the YAML file at `path` < `overrides` (`{"training": {"total_step": 10}}`).

    `concepts` is a list of mappings, on the command line of YAML mappings or files as text; see `with_concepts`.
    Raises UserError for a missing file, for invalid YAML, and as `schema.merge` does.
    """
    layers = {}
    concepts: Any = None
    if path is not None:
        layers[str(path)] = schema.read_yaml(Config, path)
        concepts = layers[str(path)].pop("concepts", None)
    sections = dict(overrides or {})
    concepts = sections.pop("concepts", concepts)
    config = schema.merge(Config, {**layers, "command line": sections})
    if not config.model.has_class_embedding:
        # Only SDXL has a pooled text embedding: the rule of a translated command, say, is not that of a run.
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, pooling=POOLING_RULES[0]))
    if isinstance(concepts, str):
        concepts = [concepts]
    if concepts and not isinstance(concepts, Sequence):
        raise UserError(f"concepts is {concepts!r}; give a list of mappings of options")
    return with_concepts(config, concepts) if concepts else config


def with_concepts(config: Config, entries: Sequence[Any]) -> Config:
    """Return `config` with these concepts, the negative one last. A single entry becomes the `concept` section.

    `entries` are mappings of the options of `ConceptConfig`, or text as `schema.load_mappings` reads it. What an entry
    leaves out is taken from `config.concept`. Raises UserError for an entry that is not a mapping of options, two
    negative concepts, and a negative concept alone.
    """
    mappings: list[Any] = []
    for entry in entries:
        mappings += schema.load_mappings(entry) if isinstance(entry, str) else [entry]
    concepts = [_concept(config.concept, mapping, k) for k, mapping in enumerate(mappings, 1)]
    negative = [concept for concept in concepts if concept.negative]
    if len(negative) > 1:
        raise UserError("--concepts has two negative concepts; at most one is possible")
    if negative and len(negative) == len(concepts):
        raise UserError("--concepts has only a negative concept; add the concept that it is trained with")
    if len(concepts) == 1:
        return dataclasses.replace(config, concept=concepts[0], concepts=[])
    ordered = [concept for concept in concepts if not concept.negative] + negative
    return dataclasses.replace(config, concepts=ordered)


def _concept(defaults: ConceptConfig, mapping: Any, number: int) -> ConceptConfig:
    source = f"--concepts, concept {number}"
    if not isinstance(mapping, dict):
        raise UserError(f"{source} is {mapping!r}; write {{placeholder_token: <token>, data_path: folder}}")
    concept = schema.merge(ConceptConfig, {source: {**dataclasses.asdict(defaults), **mapping}}, f"{source}: ")
    if not concept.negative:
        return concept
    if mapping.get("data_path"):
        raise UserError(
            f"{source}: a negative concept is trained on the images of the other concepts; leave out its data_path"
        )
    return dataclasses.replace(concept, data_path="")


def save(config: Config, path: str | Path) -> None:
    """Write `config` as YAML that `load` reads back to an equal Config."""
    Path(path).write_text(yaml_files.dump(dataclasses.asdict(config)), encoding="utf-8")


def check(config: Config) -> None:
    """Raise UserError if an option is outside its limits."""
    schema.check_limits(config)
