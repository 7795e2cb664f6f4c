"""One step of the policy: exact over micro-batches, safe from NaN, published as a whole."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_support import batch_of, config_for, ragged_samples, tiny_model, weights_of
from transformers import AutoModelForCausalLM

from arealite.algorithms.policy_gradient import PolicyGradient
from arealite.data.batch import Batch, Sample
from arealite.data.micro_batch import MicroBatch
from arealite.errors import ConfigError, NonFinite
from arealite.training.guard import Guard
from arealite.training.logprobs import token_logprobs
from arealite.training.policy import Policy
from arealite.training.sft import cross_entropy
from arealite.training.weights import WEIGHTS_DIR, make_probe


def _policy(total: int = 10, tied: bool = True, **options: Any) -> Policy:
    return Policy(tiny_model(tied=tied), config_for(**options), total)


def _grpo(policy: Policy) -> Any:
    return PolicyGradient(policy.config).loss


def _assert_weights(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=atol)


# Adam's first step is lr * gradient / (|gradient| + eps): with a large eps it does not turn the
# rounding of a gradient near zero into a whole step.
SMOOTH = {"eps": 1e-2}


@pytest.mark.parametrize("budget", [1, 40, 90])
def test_k_micro_batches_equal_one_batch(budget: int) -> None:
    samples = ragged_samples(12, seed=1)
    whole, cut = _policy(**SMOOTH), _policy(max_tokens=budget, **SMOOTH)
    for _ in range(3):
        stats = whole.update(batch_of(samples), _grpo(whole))
        cut_stats = cut.update(batch_of(samples), _grpo(cut))
    _assert_weights(weights_of(cut.model), weights_of(whole.model), 1e-5)
    for name in ("loss/policy", "loss/entropy", "loss/grad_norm", "loss/behave_kl"):
        assert cut_stats[name] == pytest.approx(stats[name], rel=1e-3), name


def test_a_step_makes_good_tokens_likelier_and_bad_ones_rarer() -> None:
    policy = _policy(lr=1e-3)
    samples = ragged_samples(6, seed=2)
    probes = []

    def loss(logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        probes.append(float((logprobs.detach() * batch.advantages).sum()))
        return -(logprobs * batch.advantages).sum(), {}

    for _ in range(3):
        policy.update(batch_of(samples), loss)
    assert probes[0] < probes[1] < probes[2]


def test_later_minibatches_are_measured_against_the_policy_that_took_the_batch() -> None:
    samples = ragged_samples(6, seed=3)
    policy = _policy(minibatches=2)
    seen: list[tuple[Tensor, Tensor]] = []
    arrival = tiny_model()

    def loss(logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.prox is not None
        assert not batch.prox.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(batch.prox, token_logprobs(arrival, batch, 1.0)[0])
        seen.append((logprobs.detach(), batch.prox))
        return _grpo(policy)(logprobs, batch)

    policy.update(batch_of(samples), loss)
    first, second = seen
    torch.testing.assert_close(first[0], first[1])
    assert float((second[0] - second[1]).abs().max()) > 1e-3  # the first update moved it
    assert len(first[0]) + len(second[0]) == batch_of(samples).n_tokens


def test_one_minibatch_needs_no_proximal_forward() -> None:
    policy = _policy()
    batches: list[MicroBatch] = []

    def loss(logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        batches.append(batch)
        return logprobs.sum() * 0.0, {}

    policy.update(batch_of(ragged_samples(3)), loss)
    assert [b.prox for b in batches] == [None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    bad: float, dtype: torch.dtype
) -> None:
    samples = ragged_samples(6, seed=4)
    policy, untouched = (
        Policy(tiny_model(dtype=dtype), config_for(max_tokens=40), 10) for _ in range(2)
    )
    before = weights_of(policy.model)
    calls = 0

    def loss(logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        return logprobs.sum() * (bad if calls == 3 else 1.0), {}

    stats = policy.update(batch_of(samples), loss)
    assert calls >= 3
    assert stats["train/skipped_updates"] == 1.0
    assert all(math.isfinite(value) for value in stats.values())
    _assert_weights(weights_of(policy.model), before, 0.0)
    # nothing of the failed step is left
    assert policy.update(batch_of(samples), _grpo(policy))["train/skipped_updates"] == 0.0
    untouched.update(batch_of(samples), _grpo(untouched))
    _assert_weights(weights_of(policy.model), weights_of(untouched.model), 0.0)


def _spoiled(logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    return (logprobs - logprobs.detach()).abs().sqrt().sum(), {}  # 0, with slope inf * 0


def test_the_third_spoiled_update_in_a_row_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "nonfinite"
    policy = Policy(tiny_model(), config_for(lr=0.0), 10, guard=Guard(folder))
    before = weights_of(policy.model)
    samples = ragged_samples(4)
    samples[0] = replace(samples[0], advantage=math.nan)
    for spoiled in (True, True, False, True, True):  # a good one between starts the count again
        policy.update(batch_of(samples), _spoiled if spoiled else cross_entropy)
        policy.version += 1
    with pytest.raises(
        NonFinite, match=rf"^the gradient norm is nan at version 6, .* kept in {folder}: lower"
    ) as told:
        policy.update(batch_of(samples), _spoiled)
    assert told.value.exit_code == 7
    _assert_weights(weights_of(policy.model), before, 0.0)
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"version-{n}-update-{n}.json" for n in (1, 2, 4, 5, 6)]
    kept = json.loads((folder / files[0]).read_text())
    assert kept["reason"] == "the gradient norm is nan"
    assert [sample["tokens"] for sample in kept["samples"]] == [s.tokens for s in samples]
    assert [sample["advantage"] for sample in kept["samples"]][:2] == ["nan", samples[1].advantage]


def test_a_batch_that_cannot_be_kept_costs_the_evidence_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "full").touch()  # where a folder was to be: the disk refuses
    policy = Policy(tiny_model(), config_for(lr=0.0), 10, guard=Guard(tmp_path / "full" / "x"))
    assert policy.update(batch_of(ragged_samples(4)), _spoiled)["train/skipped_updates"] == 1.0
    assert "their batch could not be kept in" in caplog.text
    policy.update(batch_of(ragged_samples(4)), _spoiled)
    with pytest.raises(NonFinite, match="spoiled the weights; their batch could not be kept"):
        policy.update(batch_of(ragged_samples(4)), _spoiled)


def test_one_spoiled_minibatch_costs_itself_alone() -> None:
    policy, half = _policy(minibatches=2), _policy(minibatches=2)
    samples = ragged_samples(6, seed=4)
    calls = 0

    def loss(logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        return logprobs.sum() * (math.nan if calls == 1 else 1.0), {}

    assert policy.update(batch_of(samples), loss)["train/skipped_updates"] == 1.0
    with pytest.raises(AssertionError):
        _assert_weights(weights_of(policy.model), weights_of(half.model), 0.0)


def test_bfloat16_weights_learn_as_float32_ones_do() -> None:
    """At a learning rate far below the weights' resolution, where bfloat16 alone would not move."""
    narrow = Policy(tiny_model(dtype=torch.bfloat16), config_for(lr=5e-6), 10)
    wide = Policy(tiny_model(dtype=torch.bfloat16).float(), config_for(lr=5e-6), 10)
    start = torch.cat([p.detach().flatten() for p in _moved(wide)])
    for step in range(10):
        for policy in (narrow, wide):
            policy.update(batch_of(ragged_samples(6, seed=step)), _grpo(policy))
    masters = _moved(narrow)
    assert all(p.dtype == torch.float32 for p in masters)
    found, expected = (
        torch.cat([p.detach().flatten() for p in parameters]) - start
        for parameters in (masters, _moved(wide))
    )
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=0.03)
    assert float(torch.cosine_similarity(found, expected, dim=0)) > 0.95
    by_shape = sorted(narrow.model.parameters(), key=lambda p: p.ndim < 2)  # as the groups are
    for weight, master in zip(by_shape, masters, strict=True):
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, master.to(torch.bfloat16))


def _moved(policy: Policy) -> list[Tensor]:
    return [p for group in policy.optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("token", [61, -1])
@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_token_that_the_model_does_not_have_is_named(token: int, place: int) -> None:
    policy = _policy()
    samples = ragged_samples(4, longest=12)
    samples[2] = Sample([1] * place + [token] + [1] * (9 - place), [8, 9], [-1.0, -1.0], 1.0)
    with pytest.raises(ConfigError, match=rf"token id {token}, but .* actor.path .* 0 to 60"):
        policy.update(batch_of(samples), _grpo(policy))


def test_a_batch_without_samples_keeps_going() -> None:
    policy = _policy(minibatches=2)
    before = weights_of(policy.model)
    stats = policy.update(Batch([], 17), _grpo(policy))
    _assert_weights(weights_of(policy.model), before, 0.0)
    assert stats["loss/policy"] == 0.0
    assert stats["loss/grad_norm"] == 0.0
    assert all(math.isfinite(value) for value in stats.values())
    assert policy.update(batch_of(ragged_samples(4)), _grpo(policy))["loss/grad_norm"] > 0.0


def test_fewer_samples_than_minibatches() -> None:
    stats = (policy := _policy(minibatches=4)).update(batch_of(ragged_samples(2)), _grpo(policy))
    assert all(math.isfinite(value) for value in stats.values())


def test_the_schedule_counts_optimizer_updates() -> None:
    policy = _policy(total=4, minibatches=2, lr=1.0, lr_scheduler_type="linear")
    rates = [policy.update(batch_of(ragged_samples(4)), _grpo(policy))["lr"] for _ in range(2)]
    assert rates == pytest.approx([2 / 3, 0.0])


@pytest.fixture
def weights_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_version_loads_bit_equal(weights_dir: Path, tied: bool) -> None:
    with _policy(tied=tied) as policy:
        policy.update(batch_of(ragged_samples(4)), _grpo(policy))
        update = policy.export(1)
        assert (update.version, policy.version, update.vocabulary) == (1, 1, 61)
        loaded = AutoModelForCausalLM.from_pretrained(update.path, dtype=torch.float32)
        _assert_weights(weights_of(loaded), weights_of(policy.model), 0.0)
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
        assert torch.equal(loaded.lm_head.weight, policy.model.lm_head.weight)
        assert make_probe(loaded, 61).logprobs == pytest.approx(update.probe.logprobs, abs=1e-5)
    assert not weights_dir.exists()


def test_old_versions_are_removed_and_nothing_half_written_is_visible(weights_dir: Path) -> None:
    with _policy() as policy:
        for version in range(4):
            path = Path(policy.export(version).path)
            assert (path / "config.json").is_file()
            assert (path / "model.safetensors").is_file()
            names = sorted(p.name for p in weights_dir.iterdir())
            assert names == [f"v{v}" for v in range(max(0, version - 1), version + 1)]


def test_a_version_is_exported_once(weights_dir: Path) -> None:
    with _policy() as policy:
        policy.export(0)
        policy.export(1)
        with pytest.raises(ValueError, match="version 1 is published already"):
            policy.export(1)
        assert sorted(p.name for p in weights_dir.iterdir()) == ["v0", "v1"]


def test_a_version_is_invisible_until_it_is_whole(
    weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _policy() as policy:
        policy.export(0)

        def half(folder: Path, **_: Any) -> None:
            Path(folder).mkdir()
            (Path(folder) / "config.json").write_text("{")
            raise OSError("disk full")

        monkeypatch.setattr(policy.model, "save_pretrained", half)
        with pytest.raises(OSError, match="disk full"):
            policy.export(1)
        assert policy.version == 0
        assert [p.name for p in weights_dir.iterdir() if not p.name.startswith(".")] == ["v0"]
