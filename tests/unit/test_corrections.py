"""Corrections by hand: two samples, of which the second drifted far."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from training_support import batch_of, config_for, ragged_samples, tiny_model

from arealite.algorithms.corrections import importance_weights
from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.training.policy import Policy

RATIOS = torch.tensor([2.0, 0.5, 1.5, 4.0, 3.0])
SEQUENCE = torch.tensor([0, 0, 0, 1, 1])  # products 1.5 and 12, means 1.145 and 3.464


@pytest.mark.parametrize(
    ("mode", "floor", "cap", "weights", "cut"),
    [
        ("disabled", 0.0, 1.1, [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        ("token_truncate", 0.0, 2.5, [2, 0.5, 1.5, 2.5, 2.5], [0, 0, 0, 1, 1]),
        ("sequence_truncate", 0.0, 5.0, [1.5, 1.5, 1.5, 5, 5], [0, 0, 0, 1, 1]),
        ("token_mask", 0.6, 3.5, [2, 0, 1.5, 0, 3], [0, 1, 0, 1, 0]),
        ("sequence_mask", 0.0, 5.0, [1.5, 1.5, 1.5, 0, 0], [0, 0, 0, 1, 1]),
        ("sequence_mask", 2.0, 20.0, [0, 0, 0, 12, 12], [1, 1, 1, 0, 0]),
        ("geometric_mask", 0.5, 1.2, [1, 1, 1, 0, 0], [0, 0, 0, 1, 1]),
        ("geometric_mask", 1.2, 4.0, [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]),
    ],
)
def test_weights_by_hand(
    mode: str, floor: float, cap: float, weights: list[float], cut: list[int]
) -> None:
    found, where = importance_weights(RATIOS.log(), SEQUENCE, mode, floor, cap)
    assert found.tolist() == pytest.approx(weights, rel=1e-5)
    assert where.int().tolist() == cut


@pytest.mark.parametrize("mode", ["token_truncate", "disabled"])
def test_a_step_always_tells_the_mismatch(mode: str) -> None:
    config = config_for(max_tokens=40)
    config = replace(config, actor=replace(config.actor, behave_imp_weight_mode=mode))
    policy = Policy(tiny_model(), config, 1)
    stats = policy.update(batch_of(ragged_samples(6)), PolicyGradient(config).loss)
    assert 0.0 < stats["loss/ess"] < 1.0
    assert stats["loss/mismatch_kl"] == pytest.approx(stats["loss/behave_kl"], rel=1e-5)
    assert (stats["loss/cap_fraction"] > 0) is (mode == "token_truncate")
    assert all(math.isfinite(value) for value in stats.values())
    assert not any("is_ratio" in name for name in stats)
