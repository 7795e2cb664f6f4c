"""Asynchronous reinforcement learning for language models.

The public names. Importing the package loads none of them: the launcher must start without
torch, so each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arealite.algorithms.policy_gradient import PolicyGradient as PolicyGradient
    from arealite.assembly import open_rollouts as open_rollouts
    from arealite.config import Config as Config
    from arealite.config import load as load
    from arealite.data.batch import to_batch as to_batch
    from arealite.evaluation import Evaluation as Evaluation
    from arealite.processes import is_trainer as is_trainer
    from arealite.protocols import InferenceEngine as InferenceEngine
    from arealite.protocols import Workflow as Workflow
    from arealite.run import open_run as open_run
    from arealite.run import run_trainer as run_trainer
    from arealite.training.policy import Policy as Policy
    from arealite.types import Episode as Episode
    from arealite.types import GenerationHyperparameters as GenerationHyperparameters
    from arealite.types import ModelRequest as ModelRequest
    from arealite.types import ModelResponse as ModelResponse
    from arealite.types import Trajectory as Trajectory

_HOME = {
    "PolicyGradient": "arealite.algorithms.policy_gradient",
    "Config": "arealite.config",
    "load": "arealite.config",
    "to_batch": "arealite.data.batch",
    "is_trainer": "arealite.processes",
    "InferenceEngine": "arealite.protocols",
    "Workflow": "arealite.protocols",
    "Evaluation": "arealite.evaluation",
    "open_rollouts": "arealite.assembly",
    "open_run": "arealite.run",
    "run_trainer": "arealite.run",
    "Policy": "arealite.training.policy",
    "Episode": "arealite.types",
    "GenerationHyperparameters": "arealite.types",
    "ModelRequest": "arealite.types",
    "ModelResponse": "arealite.types",
    "Trajectory": "arealite.types",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'arealite' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
