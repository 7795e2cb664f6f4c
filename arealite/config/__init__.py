"""Configuration: frozen dataclasses, YAML plus dotted overrides, one sentence per mistake."""

from arealite.config.load import load, to_yaml
from arealite.config.schema import (
    Config,
    DatasetConfig,
    EvaluatorConfig,
    PrepareConfig,
    RecoverConfig,
    RewardConfig,
    RolloutConfig,
    SaverConfig,
    SchedulerConfig,
    StatsLoggerConfig,
    WandbConfig,
)
from arealite.config.training import (
    ActorConfig,
    CriticConfig,
    LoraConfig,
    MicroBatchSpec,
    OptimizerConfig,
    RefConfig,
)

__all__ = [
    "ActorConfig",
    "Config",
    "CriticConfig",
    "DatasetConfig",
    "EvaluatorConfig",
    "LoraConfig",
    "MicroBatchSpec",
    "OptimizerConfig",
    "PrepareConfig",
    "RecoverConfig",
    "RefConfig",
    "RewardConfig",
    "RolloutConfig",
    "SaverConfig",
    "SchedulerConfig",
    "StatsLoggerConfig",
    "WandbConfig",
    "load",
    "to_yaml",
]
