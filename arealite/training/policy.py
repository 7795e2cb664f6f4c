"""The policy: a Hugging Face model, its optimizer, and the step from one version to the next."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from arealite import stopping
from arealite.algorithms.corrections import effective_sample_size
from arealite.checkpoints.store import Checkpoint
from arealite.config import Config
from arealite.crash import crash_point
from arealite.data.batch import Batch, Sample
from arealite.data.micro_batch import MicroBatch, micro_batches
from arealite.errors import ConfigError, NonFinite
from arealite.telemetry.run_folder import RunFolder
from arealite.training.guard import Guard
from arealite.training.logprobs import check_model, token_logprobs, use_packing
from arealite.training.model import load_model, load_reference, use_threads, vocabulary_of
from arealite.training.optim import (
    MasterWeights,
    build_optimizer,
    clip_gradients,
    learning_rate,
)
from arealite.training.state import PolicyState, copied, load_trainer, trainer_tensors
from arealite.training.weights import Publisher, make_probe, weights_folder
from arealite.types import WeightUpdate

Loss = Callable[[Tensor, MicroBatch], tuple[Tensor, dict[str, Tensor]]]


class Policy:
    """What is trained. `version` counts published policies; 0 is the model as loaded."""

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        total_updates: int,
        reference: nn.Module | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.model, self.config, self._reference = model, config, reference
        self._guard = guard or Guard()
        self.version = 0
        self._masters = MasterWeights(model.parameters())
        learned = (name for name, weight in model.named_parameters() if weight.requires_grad)
        self._named = dict(zip(learned, self._masters.parameters, strict=True))
        self.optimizer = build_optimizer(self._masters, config.actor.optimizer)
        self._updates, self._total_updates = 0, total_updates
        self._temperature = 1.0 if config.mode == "sft" else config.gconfig.temperature
        self._packed = (
            config.actor.mb_spec.packing
            and use_packing(model)
            and (reference is None or use_packing(reference))
        )
        self._vocabulary = vocabulary_of(model)
        self._publisher: Publisher | None = None

    @classmethod
    def load(
        cls, config: Config, total_updates: int, checkpoint: Checkpoint | None = None
    ) -> Policy:
        """The policy at version 0, or as the checkpoint holds it. total_updates: where the
        learning-rate schedule ends.

        Raises ConfigError naming actor.path, or ref.path, when the model cannot be loaded or is
        unfit; CheckpointError when the checkpoint is of another model.
        """
        use_threads(config.actor.threads)
        torch.manual_seed(config.seed)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        model = load_model(config.actor, str(checkpoint.path) if checkpoint else "")
        check_model(model)
        reference = load_reference(config, model)
        if reference is not None:
            check_model(reference, "ref.path")
        folder = RunFolder.of(config.fileroot, config.experiment_name, config.trial_name)
        policy = cls(model, config, total_updates, reference, Guard(folder.nonfinite))
        if checkpoint is not None:
            policy.version = checkpoint.version
            policy._updates = load_trainer(
                checkpoint.path, policy.optimizer, policy._named, policy.model
            )
            crash_point("recovery.weights_loaded")
        return policy

    def state(self) -> PolicyState:
        """A copy of this version in memory: all that a checkpoint needs of it."""
        trainer = dict(trainer_tensors(self.optimizer, self._named, self.model))
        return PolicyState(
            self.version, self._updates, copied(self.model.state_dict()), copied(trainer)
        )

    def update(self, batch: Batch, loss: Loss) -> dict[str, float]:
        """One version's training step: one optimizer update per minibatch. Flat metrics.

        The loss is summed over micro-batches and divided once by the minibatch's share of the
        global token count, so the cut into micro-batches never shows. An update whose loss or
        gradient is not finite is left out, and its samples kept in the run folder
        (`train/skipped_updates`). Raises NonFinite for the third of these in a row, ConfigError
        for a token that the model does not have, Preempted where the run is asked to stop before
        the first of the updates.
        """
        started = time.monotonic()
        self._check_tokens(batch.samples)
        self.optimizer.zero_grad()  # also what a step that failed left behind
        sums: defaultdict[str, float] = defaultdict(float)
        parts = _split(batch, self.config.actor.ppo_n_minibatches)
        pieces = [self._cut(part) for part, _ in parts]
        if len(parts) > 1:  # later updates are measured against the policy that took the batch
            pieces = [[self._annotate(m) for m in piece] for piece in pieces]
        done = 0
        for number, (piece, (samples, n_tokens)) in enumerate(zip(pieces, parts, strict=True)):
            told: defaultdict[str, float] = defaultdict(float)
            for micro in piece:
                if number == 0:  # before the first step the weights are still those of a version
                    stopping.check()
                for name, value in self._backward(micro, loss, n_tokens).items():
                    told[name] += value
            crash_point("after_backward")
            told["grad_norm"] = self._gradient_norm()
            if self._step(told, samples):
                done += 1
                for name, value in told.items():
                    sums[name] += value
            crash_point("after_optimizer_step")
        seconds = time.monotonic() - started
        skipped = {"train/skipped_updates": float(len(parts) - done)}
        return self._stats(sums, batch, max(done, 1), seconds) | skipped

    @torch.no_grad()
    def loss_of(self, samples: Sequence[Sample], loss: Loss) -> float:
        """The mean loss of their trained tokens; nothing is learned from it."""
        self._check_tokens(samples)
        total, tokens = 0.0, 0
        for micro in self._cut(samples):
            micro = micro.to(self.config.actor.device)
            logprobs, _ = token_logprobs(self.model, micro, self._temperature)
            total += float(loss(logprobs, micro)[0])
            tokens += len(micro.targets)
        if not math.isfinite(total):
            raise NonFinite(f"the held-out loss is {total} at version {self.version}")
        return total / max(tokens, 1)

    def export(self, version: int) -> WeightUpdate:
        """Writes the weights as a complete folder, with the probe that a right engine answers."""
        if self._publisher is None:
            self._publisher = Publisher(weights_folder())
        path = self._publisher.write(self.model, version)
        crash_point("weights_written")
        self.version = version
        crash_point("after_version_bump")
        probe = make_probe(self.model, self._vocabulary)
        return WeightUpdate(version, str(path), probe, self._vocabulary)

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_: object) -> None:
        if self._publisher is not None:
            self._publisher.close()

    def _check_tokens(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            for token in (min(sample.tokens), max(sample.tokens)):
                if not 0 <= token < self._vocabulary:
                    raise ConfigError(
                        f"a trajectory has the token id {token}, but the model of actor.path has "
                        f"the ids 0 to {self._vocabulary - 1}; give the tokenizer of this model, "
                        "and see what ids the workflow returns"
                    )

    def _cut(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        actor = self.config.actor
        budget = actor.mb_spec.max_tokens_per_mb
        return list(micro_batches(samples, budget, self._packed, actor.share_prompts))

    def _backward(self, micro: MicroBatch, loss: Loss, n_tokens: int) -> dict[str, float]:
        micro = self._with_reference(micro.to(self.config.actor.device))
        logprobs, entropy = token_logprobs(self.model, micro, self._temperature)
        total, stats = loss(logprobs, micro)
        (total / n_tokens).backward()  # type: ignore[no-untyped-call]
        stats |= {"policy": total.detach(), "entropy": entropy.sum()}
        return {name: float(value) for name, value in stats.items()} | {
            "tokens": float(len(micro.targets))
        }

    def _gradient_norm(self) -> float:
        """The global norm before clipping."""
        for parameter in self._masters.parameters:
            if parameter.grad is None:  # a batch that teaches nothing still moves AdamW's moments
                parameter.grad = torch.zeros_like(parameter)
        limit = self.config.actor.optimizer.gradient_clipping
        return clip_gradients(self._masters.parameters, limit)

    def _step(self, told: Mapping[str, float], samples: Sequence[Sample]) -> bool:
        """Moves the weights; False where what was told is not finite, and nothing moved."""
        rate = learning_rate(self.config.actor.optimizer, self._updates, self._total_updates)
        self._updates += 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, norm = told.get("policy", 0.0), told["grad_norm"]
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if is_finite:
            self.optimizer.step()
            self._guard.passed()
        self.optimizer.zero_grad()
        if not is_finite:
            odd = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
            self._guard.left_out(odd, self.version + 1, self._updates, samples)
        return is_finite

    @torch.no_grad()
    def _annotate(self, micro: MicroBatch) -> MicroBatch:
        on_device = micro.to(self.config.actor.device)
        prox, _ = token_logprobs(self.model, on_device, self._temperature)
        return dataclasses.replace(on_device, prox=prox)

    @torch.no_grad()
    def _with_reference(self, micro: MicroBatch) -> MicroBatch:
        if self._reference is None:
            return micro
        logprobs, _ = token_logprobs(self._reference, micro, self._temperature)
        return dataclasses.replace(micro, ref=logprobs)

    def _stats(
        self, sums: dict[str, float], batch: Batch, updates: int, seconds: float
    ) -> dict[str, float]:
        tokens = max(sums.pop("tokens", 0.0), 1.0)
        norm = sums.pop("grad_norm", 0.0) / updates
        stats = {f"loss/{name}": value / tokens for name, value in sums.items()}
        if "loss/is_ratio" in stats:
            square = stats.pop("loss/is_ratio_squared")
            stats["loss/ess"] = effective_sample_size(stats.pop("loss/is_ratio"), square)
        stats |= {
            "loss/policy": sums.get("policy", 0.0) / batch.n_tokens,
            "loss/grad_norm": norm,
            "lr": self.optimizer.param_groups[0]["lr"],
            "time/update_s": seconds,
            "train/tokens_per_s": sum(len(s.tokens) for s in batch.samples) / max(seconds, 1e-9),
        }
        return stats


def _split(batch: Batch, parts: int) -> list[tuple[Sequence[Sample], int]]:
    """Minibatches with their share of the global token count; every part-th sample."""
    if parts == 1:
        return [(batch.samples, batch.n_tokens)]
    share = max(batch.n_tokens // parts, 1)
    return [(batch.samples[i::parts], share) for i in range(parts)]
