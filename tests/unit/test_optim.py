"""The learning rate by hand, the groups of weight decay, and the clipped norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_support import tiny_model

from arealite.config import OptimizerConfig
from arealite.training.optim import (
    MasterWeights,
    build_optimizer,
    clip_gradients,
    learning_rate,
)


def _rates(total: int, **fields: object) -> list[float]:
    config = OptimizerConfig(lr=1.0, **fields)  # type: ignore[arg-type]
    return [learning_rate(config, update, total) for update in range(total)]


def test_constant() -> None:
    assert _rates(4) == [1.0, 1.0, 1.0, 1.0]


def test_linear_by_hand() -> None:
    assert _rates(5, lr_scheduler_type="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert _rates(5, lr_scheduler_type="linear", min_lr_ratio=0.2) == pytest.approx(
        [1.0, 0.8, 0.6, 0.4, 0.2]
    )


def test_cosine_by_hand() -> None:
    # halves of 1 + cos(0, 60, 120, 180 degrees)
    assert _rates(4, lr_scheduler_type="cosine") == pytest.approx([1.0, 0.75, 0.25, 0.0], abs=1e-12)
    assert _rates(3, lr_scheduler_type="cosine", min_lr_ratio=0.1) == pytest.approx(
        [1.0, 0.55, 0.1]
    )


def test_polynomial_by_hand() -> None:
    # squares of 1, 3/4, 1/2, 1/4, 0
    assert _rates(5, lr_scheduler_type="polynomial") == pytest.approx(
        [1.0, 9 / 16, 0.25, 1 / 16, 0.0]
    )
    assert _rates(
        3, lr_scheduler_type="polynomial", lr_scheduler_power=1.0, min_lr_ratio=0.2
    ) == pytest.approx([1.0, 0.6, 0.2])


def test_warm_up_climbs_to_the_peak_and_never_starts_at_zero() -> None:
    assert _rates(6, warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert _rates(7, warmup_steps=2, lr_scheduler_type="linear") == pytest.approx(
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    )


def test_warm_up_as_a_share() -> None:
    by_share = _rates(10, warmup_steps_proportion=0.2, lr_scheduler_type="cosine")
    assert by_share == _rates(10, warmup_steps=2, lr_scheduler_type="cosine")
    assert _rates(10, warmup_steps=0, warmup_steps_proportion=0.5) == [1.0] * 10


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "polynomial"])
def test_updates_past_the_end_stay_at_the_last_rate(kind: str) -> None:
    config = OptimizerConfig(lr=2.0, lr_scheduler_type=kind, min_lr_ratio=0.1)  # type: ignore[arg-type]
    assert learning_rate(config, 30, 10) == pytest.approx(learning_rate(config, 9, 10))
    assert learning_rate(config, 0, 1) == 2.0


def test_decay_touches_matrices_only() -> None:
    model = tiny_model()
    masters = MasterWeights(model.parameters())
    matrices, vectors = build_optimizer(masters, OptimizerConfig(weight_decay=0.1)).param_groups
    assert matrices["weight_decay"] == 0.1
    assert vectors["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_two_sgd_updates_by_hand() -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0)
        layer.bias.fill_(1.0)
    config = OptimizerConfig(type="sgd", lr=0.1, momentum=0.5, weight_decay=0.5)
    optimizer = build_optimizer(MasterWeights(layer.parameters()), config)
    expected = [
        # matrix: 3 + 0.5 * 2 = 4, then 3 + 0.5 * 1.6 + 0.5 * 4 = 5.8; vector: 3, then 3 + 0.5 * 3
        (1.6, 0.7),
        (1.02, 0.25),
    ]
    for weight, bias in expected:
        layer.weight.grad, layer.bias.grad = torch.full((1, 1), 3.0), torch.full((1,), 3.0)
        optimizer.step()
        assert (layer.weight.item(), layer.bias.item()) == pytest.approx((weight, bias))


def test_one_adamw_update_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    masters = MasterWeights(layer.parameters())
    optimizer = build_optimizer(masters, OptimizerConfig(lr=0.1, weight_decay=0.5))
    layer.weight.grad = torch.full_like(layer.weight, 3.0)
    optimizer.step()
    # decay: 2 * (1 - 0.1 * 0.5) = 1.9; the first Adam step is lr * sign(gradient)
    assert float(layer.weight) == pytest.approx(1.8, abs=1e-6)


def _bfloat16_layer(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(value)
    return layer.to(torch.bfloat16)


def test_small_updates_of_bfloat16_weights_add_up() -> None:
    layer = _bfloat16_layer(1.0)  # the next lower number is 1 - 1/256
    masters = MasterWeights(layer.parameters())
    optimizer = build_optimizer(masters, OptimizerConfig(lr=1e-4, weight_decay=0.0))
    seen = []
    for _ in range(100):
        (3.0 * layer.weight).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(layer.weight))
    assert seen[0] == 1.0
    assert seen[-1] == 1.0 - 3 / 256  # 0.99, rounded; each step is lr * sign(gradient)
    (master,) = masters.parameters
    assert master.dtype == torch.float32
    assert float(master) == pytest.approx(0.99, abs=1e-5)
    assert torch.equal(layer.weight, master.to(torch.bfloat16))
    assert layer.weight.grad is None


def test_gradients_of_bfloat16_weights_add_up_in_float32() -> None:
    layer = _bfloat16_layer(1.0)
    (master,) = MasterWeights(layer.parameters()).parameters
    for gradient in (256.0, 1.0, 1.0, 1.0):  # one backward pass per micro-batch
        (gradient * layer.weight).sum().backward()
        assert layer.weight.grad is None
    assert master.grad is not None
    assert master.grad.dtype == torch.float32
    assert float(master.grad) == 259.0  # in bfloat16, 256 + 1 is 256, each time anew


def test_float32_weights_need_no_copies() -> None:
    model = tiny_model()
    model.get_input_embeddings().weight.requires_grad = False
    parameters = MasterWeights(model.parameters()).parameters
    assert list(map(id, parameters)) == [id(p) for p in model.parameters() if p.requires_grad]


def test_clipping_returns_the_norm_before_and_leaves_the_limit() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [0.0, 6.0])
def test_a_gradient_within_the_limit_is_left_alone(limit: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], limit) == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]
