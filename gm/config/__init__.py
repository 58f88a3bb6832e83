"""Options: schema, model architecture, sections of the YAML files, command line."""

from gm.config.config import (
    POOLING_RULES,
    Config,
    RunConfig,
    SamplingConfig,
    check,
    load,
    save,
    with_concepts,
)
from gm.config.evaluation import EvaluationConfig
from gm.config.training import ConceptConfig, DataConfig, LossConfig, TrainingConfig

__all__ = [
    "POOLING_RULES",
    "ConceptConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LossConfig",
    "RunConfig",
    "SamplingConfig",
    "TrainingConfig",
    "check",
    "load",
    "save",
    "with_concepts",
]
