"""Options: their schema, the model's shape, every section of the YAML files, and the command line."""

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
