"""Options: schema, model architecture, sections of the YAML files, command line."""

from gm.config.config import (
    POOLING_RULES,
    ConceptConfig,
    Config,
    DataConfig,
    LossConfig,
    RunConfig,
    SamplingConfig,
    TrainingConfig,
    WordConfig,
    check,
    load,
    save,
)

__all__ = [
    "POOLING_RULES",
    "ConceptConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "RunConfig",
    "SamplingConfig",
    "TrainingConfig",
    "WordConfig",
    "check",
    "load",
    "save",
]
