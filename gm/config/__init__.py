"""Options: schema, model architecture, sections of the YAML files, command line."""

from gm.config.config import Config, check, load, save, with_concepts
from gm.config.evaluation import EvaluationConfig
from gm.config.loss import LossConfig
from gm.config.run import POOLING_RULES, RunConfig
from gm.config.sampling import SamplingConfig
from gm.config.training import ConceptConfig, DataConfig, TrainingConfig

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
