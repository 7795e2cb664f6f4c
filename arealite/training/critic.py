"""The critic: the policy's architecture with a scalar head, and its updates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from arealite.algorithms.values import explained_variance, value_loss
from arealite.checkpoints.store import Checkpoint
from arealite.config import Config
from arealite.crash import crash_point
from arealite.data.batch import Batch, Sample, minibatches
from arealite.data.micro_batch import MicroBatch
from arealite.training.guard import Guard
from arealite.training.learner import Learner, cut
from arealite.training.logprobs import decoder_and_head, hidden_states, use_packing
from arealite.training.model import load_beside
from arealite.training.state import learned_tensors, load_learned

PREFIX = "critic/"
"""Of its tensors among the trainer's own in a checkpoint."""


class ValueModel(nn.Module):
    """A language model's layers with a scalar head, which starts at 0 and is float32."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.body, _ = decoder_and_head(language_model)
        weight = next(language_model.parameters())
        width = language_model.config.get_text_config().hidden_size  # type: ignore[operator,union-attr]
        self.head = nn.Linear(int(width), 1, device=weight.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: MicroBatch) -> Tensor:
        """[tokens] float32: V of the state before each trained token."""
        states = hidden_states(self.body, batch).flatten(0, 1)[batch.source]
        return self.head(states.float()).squeeze(-1)  # type: ignore[no-any-return]


class Critic:
    """Foresees, at every token, the reward that is still to come."""

    def __init__(
        self,
        language_model: nn.Module,
        config: Config,
        total_updates: int,
        guard: Guard | None = None,
    ) -> None:
        """language_model: gives the layers, and is not to be used any more."""
        self._config = config
        self._packed = config.actor.mb_spec.packing and use_packing(language_model)
        self.model = ValueModel(language_model)
        self._learner = Learner(
            self.model, config.critic.optimizer, total_updates, guard or Guard(learner="critic")
        )

    @classmethod
    def load(
        cls, config: Config, total_updates: int, policy: nn.Module, guard: Guard
    ) -> Critic | None:
        """The critic of critic.path; None where actor.adv_baseline asks for none.

        Raises ConfigError when it cannot be loaded, or does not know the same tokens as the policy.
        """
        if config.mode != "rl" or config.actor.adv_baseline != "critic":
            return None
        model = load_beside(config.actor, config.critic.path, "critic.path", policy)
        return cls(model, config, total_updates, guard)

    def restore(self, checkpoint: Checkpoint, updates: float) -> None:
        """Goes on from there. Raises CheckpointError."""
        learner = self._learner
        load_learned(checkpoint.path, learner.optimizer, learner.named, self.model, PREFIX)
        learner.updates = int(updates)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        learner = self._learner
        return dict(learned_tensors(learner.optimizer, learner.named, self.model, PREFIX))

    @property
    def updates(self) -> int:
        return self._learner.updates

    @torch.no_grad()
    def values(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Of each sample, V of the state before each trained token."""
        found: dict[int, list[float]] = {}
        for micro in self._cut(samples):
            values = micro.by_sample(self.model(micro.to(self._config.actor.device)).cpu())
            found |= {id(sample): own for sample, own in zip(micro.samples, values, strict=True)}
        return [found[id(sample)] for sample in samples]

    def update(self, batch: Batch, version: int) -> dict[str, float]:
        """Moves the values towards the returns that the batch carries. Metrics, as critic/*.

        An update whose loss or gradient is not finite is left out; raises NonFinite for the third
        in a row.
        """
        critic, sums = self._config.critic, defaultdict[str, float](float)
        parts = minibatches(batch, critic.ppo_n_minibatches)
        pieces = [self._cut(samples) for samples, _ in parts]
        done = 0
        for _ in range(critic.ppo_epochs):
            for piece, (samples, n_tokens) in zip(pieces, parts, strict=True):
                told = self._accumulate(piece, n_tokens)
                told["grad_norm"] = self._learner.gradient_norm()
                if self._learner.step(told["loss"], told["grad_norm"], version, samples):
                    done += 1
                    for name, value in told.items():
                        sums[name] += value
        crash_point("after_critic_update")
        skipped = critic.ppo_epochs * len(parts) - done
        return self._stats(sums, batch, max(done, 1)) | {"critic/skipped_updates": float(skipped)}

    def _cut(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        return cut(samples, self._config.actor, self._packed)

    def _accumulate(self, piece: Sequence[MicroBatch], n_tokens: int) -> dict[str, float]:
        """Adds up the gradients of one update; sums over its tokens."""
        told = {"loss": 0.0, "clipped": 0.0, "tokens": 0.0}
        for micro in piece:
            micro = micro.to(self._config.actor.device)
            assert micro.values is not None
            assert micro.returns is not None
            loss, clipped = value_loss(
                self.model(micro), micro.values, micro.returns, self._config.critic.eps_clip_value
            )
            (loss.sum() / n_tokens).backward()  # type: ignore[no-untyped-call]
            told["loss"] += float(loss.detach().sum())
            told["clipped"] += float(clipped.sum())
            told["tokens"] += len(loss)
        return told

    def _stats(self, sums: Mapping[str, float], batch: Batch, updates: int) -> dict[str, float]:
        tokens = max(sums.get("tokens", 0.0), 1.0)
        values = torch.tensor([v for sample in batch.samples for v in sample.values])
        returns = torch.tensor([r for sample in batch.samples for r in sample.returns])
        return {
            "critic/loss": sums.get("loss", 0.0) / tokens,
            "critic/clip_fraction": sums.get("clipped", 0.0) / tokens,
            "critic/grad_norm": sums.get("grad_norm", 0.0) / updates,
            "critic/explained_variance": explained_variance(values, returns),
            "critic/value_mean": float(values.mean()) if len(values) else 0.0,
            "critic/lr": self._learner.rate,
        }
