"""The policy: a Hugging Face model, its optimizer, and the step from one version to the next."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arealite import stopping
from arealite.algorithms.corrections import effective_sample_size
from arealite.algorithms.kl import ESTIMATORS
from arealite.checkpoints.export import exporting
from arealite.checkpoints.store import Checkpoint
from arealite.config import Config
from arealite.crash import crash_point
from arealite.data.batch import Batch, Sample, minibatches
from arealite.data.micro_batch import MicroBatch
from arealite.errors import ConfigError, NonFinite
from arealite.telemetry.run_folder import RunFolder
from arealite.telemetry.trace import span
from arealite.training.checkpoint import save_model, write_model
from arealite.training.credit import TokenCredit
from arealite.training.critic import Critic
from arealite.training.guard import Guard
from arealite.training.learner import Learner, cut
from arealite.training.logprobs import check_model, token_logprobs, use_packing
from arealite.training.lora import FOLDER, Adapter
from arealite.training.model import load_model, load_reference, use_threads, vocabulary_of
from arealite.training.state import (
    PolicyState,
    copied,
    load_facts,
    load_trainer,
    trainer_tensors,
)
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
        critic: Critic | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.model, self.config, self._reference = model, config, reference
        self.critic, self._credit = critic, TokenCredit(config, critic)
        self._adapter = adapter
        self.version = 0
        self._learner = Learner(model, config.actor.optimizer, total_updates, guard)
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
        lora = config.actor.lora  # what it does not learn is where it was
        path = str(checkpoint.path) if checkpoint and not lora.rank else ""
        model = load_model(config.actor, path)
        check_model(model)
        adapter = Adapter(model, lora) if lora.rank else None
        reference = load_reference(config, model)
        if reference is not None:
            check_model(reference, "ref.path")
        kept = RunFolder.of(config.fileroot, config.experiment_name, config.trial_name).nonfinite
        updates = critic_updates(config, total_updates)
        critic = Critic.load(config, updates, model, Guard(kept, "critic"))
        policy = cls(model, config, total_updates, reference, Guard(kept), critic, adapter)
        if checkpoint is not None:
            policy._restore(checkpoint)
            crash_point("recovery.weights_loaded")
        return policy

    def _restore(self, checkpoint: Checkpoint) -> None:
        learner, self.version = self._learner, checkpoint.version
        learner.updates = load_trainer(
            checkpoint.path, learner.optimizer, learner.named, self.model, self._prefix
        )
        facts = load_facts(checkpoint.path)
        if self.critic is not None:
            self.critic.restore(checkpoint, facts.get("critic_updates", 0.0))
        self._credit.kl_ctl = facts.get("kl_ctl", self._credit.kl_ctl)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._learner.optimizer

    def state(self) -> PolicyState:
        """A copy of this version in memory: all that a checkpoint needs of it."""
        learner, facts = self._learner, {"kl_ctl": self._credit.kl_ctl}
        named = learner.named
        trainer = dict(trainer_tensors(learner.optimizer, named, self.model, self._prefix))
        if self.critic is not None:
            trainer |= self.critic.tensors()
            facts["critic_updates"] = self.critic.updates
        with self._published() as weights:
            model = copied(self.model.state_dict() if weights is None else weights)
        adapter = {} if self._adapter is None else copied(self._adapter.tensors())
        return PolicyState(self.version, learner.updates, model, copied(trainer), facts, adapter)

    def write(self, state: PolicyState, tokenizer: Any, folder: Path, card: str = "") -> None:
        """The state's model as a Hugging Face folder; with LoRA it is merged, and peft's files of
        the adapter alone lie in a folder inside. card: as in write_model."""
        write_model(self.model, tokenizer, folder, state.model, card)
        if self._adapter is not None:
            self._adapter.write(folder / FOLDER, state.adapter)

    def save(self, tokenizer: Any, folder: Path, card: str = "") -> None:
        """An export of the model as it is. Raises as exporting does."""
        if self._adapter is None:
            save_model(self.model, tokenizer, folder, self.version, card)
            return
        with exporting(folder, self.version) as target:
            self.write(self.state(), tokenizer, target, card)

    @property
    def _prefix(self) -> str:
        """A checkpoint's model does not hold an adapter's weights as they are."""
        return "" if self._adapter is None else f"{FOLDER}/"

    def _published(self) -> AbstractContextManager[dict[str, Tensor] | None]:
        """Inside, the model computes what it tells others; its weights, None where they are all."""
        return nullcontext() if self._adapter is None else self._adapter.merged()

    def update(self, batch: Batch, loss: Loss) -> dict[str, float]:
        """One version's training step: in each epoch one optimizer update per minibatch. Flat
        metrics.

        With a critic, or a price on the KL to the reference, the batch first gets an advantage for
        each token. The critic is updated as well; in its warm-up it alone.

        The loss is summed over micro-batches and divided once by the minibatch's share of the
        global token count, so the cut into micro-batches never shows. An update whose loss or
        gradient is not finite is left out, and its samples kept in the run folder
        (`train/skipped_updates`). Raises NonFinite for the third of these in a row, ConfigError
        for a token that the model does not have, Preempted where the run is asked to stop before
        the first of the updates.
        """
        with span("update"):
            return self._updated(batch, loss)

    def _updated(self, batch: Batch, loss: Loss) -> dict[str, float]:
        started = time.monotonic()
        self._check_tokens(batch.samples)
        stopping.check()
        batch, told = self._credit(*self._with_kl(batch))
        if self.critic is None or self.version >= self.config.critic.warmup_steps:
            told |= self._update(batch, loss)
        if self.critic is not None:  # last: from the first update on nothing may stop in between
            told |= self.critic.update(batch, self.version + 1)
        seconds = time.monotonic() - started
        return told | {
            "time/update_s": seconds,
            "train/tokens_per_s": sum(len(s.tokens) for s in batch.samples) / max(seconds, 1e-9),
        }

    def _update(self, batch: Batch, loss: Loss) -> dict[str, float]:
        actor, sums = self.config.actor, defaultdict[str, float](float)
        self.optimizer.zero_grad()  # also what a step that failed left behind
        parts = minibatches(batch, actor.ppo_n_minibatches)
        pieces = [self._cut(part) for part, _ in parts]
        if actor.updates_per_batch > 1:  # later ones are measured against what took the batch
            pieces = [[self._annotate(m) for m in piece] for piece in pieces]
        done = 0
        for number in range(actor.updates_per_batch):
            piece, (samples, n_tokens) = pieces[number % len(parts)], parts[number % len(parts)]
            told: defaultdict[str, float] = defaultdict(float)
            for micro in piece:
                if number == 0:  # before the first step the weights are still those of a version
                    stopping.check()
                for name, value in self._backward(micro, loss, n_tokens).items():
                    told[name] += value
            crash_point("after_backward")
            norm = told["grad_norm"] = self._learner.gradient_norm()
            if self._learner.step(told.get("policy", 0.0), norm, self.version + 1, samples):
                done += 1
                for name, value in told.items():
                    sums[name] += value
            crash_point("after_optimizer_step")
        skipped = {"train/skipped_updates": float(actor.updates_per_batch - done)}
        return self._stats(sums, batch, max(done, 1)) | skipped

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
        with span("export"):
            return self._exported(version)

    def _exported(self, version: int) -> WeightUpdate:
        if self._publisher is None:
            self._publisher = Publisher(weights_folder())
        with self._published() as weights:
            path = self._publisher.write(self.model, version, weights)
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
        return cut(samples, self.config.actor, self._packed)

    def _backward(self, micro: MicroBatch, loss: Loss, n_tokens: int) -> dict[str, float]:
        micro = self._with_reference(micro.to(self.config.actor.device))
        logprobs, entropy = token_logprobs(self.model, micro, self._temperature)
        total, stats = loss(logprobs, micro)
        (total / n_tokens).backward()  # type: ignore[no-untyped-call]
        stats |= {"policy": total.detach(), "entropy": entropy.sum()}
        return {name: float(value) for name, value in stats.items()} | {
            "tokens": float(len(micro.targets))
        }

    @torch.no_grad()
    def _with_kl(self, batch: Batch) -> tuple[Batch, list[list[float]] | None]:
        """With the log-probabilities of the policy that takes the batch, and its KL to the
        reference at each sample's tokens; None where that has no price."""
        if not (self._has_reference and self.config.actor.penalises_kl):
            return batch, None
        estimate = ESTIMATORS[self.config.actor.kl_estimator]
        found: dict[int, list[list[float]]] = {}
        for micro in self._cut(batch.samples):
            micro = micro.to(self.config.actor.device)
            prox, _ = token_logprobs(self.model, micro, self._temperature)
            ref = self._reference_logprobs(micro)
            told = micro.by_sample(prox), micro.by_sample(estimate(prox, ref))
            found |= {id(sample): pair for sample, *pair in zip(micro.samples, *told, strict=True)}
        samples = [dataclasses.replace(s, prox=found[id(s)][0]) for s in batch.samples]
        return dataclasses.replace(batch, samples=samples), [found[id(s)][1] for s in batch.samples]

    @torch.no_grad()
    def _annotate(self, micro: MicroBatch) -> MicroBatch:
        on_device = self._with_reference(micro.to(self.config.actor.device))
        if on_device.prox is not None:
            return on_device
        prox, _ = token_logprobs(self.model, on_device, self._temperature)
        return dataclasses.replace(on_device, prox=prox)

    @torch.no_grad()
    def _with_reference(self, micro: MicroBatch) -> MicroBatch:
        """For the loss, unless the KL has its price already."""
        is_priced = self.config.actor.kl_in == "reward"
        if not self._has_reference or is_priced or micro.ref is not None:
            return micro
        return dataclasses.replace(micro, ref=self._reference_logprobs(micro))

    @property
    def _has_reference(self) -> bool:
        is_inside = self._adapter is not None and self.config.actor.kl_ctl > 0
        return self._reference is not None or (is_inside and self.config.mode == "rl")

    def _reference_logprobs(self, micro: MicroBatch) -> Tensor:
        """[tokens] float32, without a gradient, of a reference that there is."""
        if self._adapter is not None:
            with self._adapter.off():
                return token_logprobs(self.model, micro, self._temperature)[0]
        assert self._reference is not None
        with torch.no_grad():
            return token_logprobs(self._reference, micro, self._temperature)[0]

    def _stats(self, sums: dict[str, float], batch: Batch, updates: int) -> dict[str, float]:
        tokens = max(sums.pop("tokens", 0.0), 1.0)
        norm = sums.pop("grad_norm", 0.0) / updates
        stats = {f"loss/{name}": value / tokens for name, value in sums.items()}
        if "loss/is_ratio" in stats:
            square = stats.pop("loss/is_ratio_squared")
            stats["loss/ess"] = effective_sample_size(stats.pop("loss/is_ratio"), square)
        normaliser = batch.n_tokens * self.config.actor.ppo_epochs
        return stats | {
            "loss/policy": sums.get("policy", 0.0) / normaliser,
            "loss/grad_norm": norm,
            "lr": self._learner.rate,
        }


def critic_updates(config: Config, total_updates: int) -> int:
    """Where the critic's schedule ends, from where the actor's does: the warm-up is its own."""
    versions = total_updates // config.actor.updates_per_batch + config.critic.warmup_steps
    return versions * config.critic.updates_per_batch
