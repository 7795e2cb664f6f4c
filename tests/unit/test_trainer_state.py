"""The trainer's state on disk: training goes on from it bit for bit, whatever the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from training_support import VOCABULARY, tiny_model

from arealite.config import OptimizerConfig
from arealite.errors import CheckpointError
from arealite.training.optim import MasterWeights, build_optimizer
from arealite.training.state import (
    TRAINER,
    PolicyState,
    copied,
    load_facts,
    load_trainer,
    save_trainer,
    trainer_tensors,
)

OPTIMIZERS: list[dict[str, Any]] = [{}, {"type": "sgd", "momentum": 0.9}, {"type": "sgd"}]


class Learner:
    """A tiny model and its optimizer."""

    def __init__(self, dtype: torch.dtype, fields: dict[str, Any]) -> None:
        self.model = tiny_model(dtype=dtype)
        masters = MasterWeights(self.model.parameters())
        names = [name for name, _ in self.model.named_parameters()]
        self.named = dict(zip(names, masters.parameters, strict=True))
        self.optimizer = build_optimizer(masters, OptimizerConfig(lr=1e-2, **fields))

    def learn(self, seed: int) -> None:
        tokens = torch.arange(12).add(seed).remainder(VOCABULARY)[None]
        self.model(input_ids=tokens, labels=tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        tensors = dict(trainer_tensors(self.optimizer, self.named, self.model))
        save_trainer(PolicyState(2, 2, {}, copied(tensors)), folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fields", OPTIMIZERS)
def test_training_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, fields: dict[str, Any], dtype: torch.dtype
) -> None:
    before, after = Learner(dtype, fields), Learner(dtype, fields)
    before.learn(0)
    before.learn(1)
    before.save(tmp_path)
    drawn = torch.rand(3)
    after.model.load_state_dict(before.model.state_dict())
    assert load_trainer(tmp_path, after.optimizer, after.named, after.model) == 2
    assert torch.equal(torch.rand(3), drawn), "the random stream goes on too"
    for learner in (before, after):
        learner.learn(2)
    pairs = zip(before.named.values(), after.named.values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_what_an_older_release_wrote_has_no_facts(tmp_path: Path) -> None:
    save_trainer(
        PolicyState(2, 2, {}, {"random/cpu": torch.get_rng_state()}, {"x": 0.25}), tmp_path
    )
    assert load_facts(tmp_path) == {"x": 0.25}
    tensors = {"random/cpu": torch.get_rng_state()}
    save_file(tensors, tmp_path / TRAINER, {"updates": "2"})
    assert load_facts(tmp_path) == {}


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    learner = Learner(torch.float32, {})
    learner.learn(0)
    learner.save(tmp_path)
    other = Learner(torch.bfloat16, {})
    with pytest.raises(CheckpointError, match=f"{TRAINER} does not fit this model"):
        load_trainer(tmp_path, other.optimizer, other.named, other.model)
