"""From what a sample is worth to what each of its tokens is worth, where a model has a say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from arealite.algorithms.advantages import gae, whitened
from arealite.algorithms.kl import adapted
from arealite.config import Config
from arealite.data.batch import Batch
from arealite.training.critic import Critic


class TokenCredit:
    """What a token earns and is worth: the sample's credit at its last token, less a penalty for
    each token's KL to the reference, and what a critic expects.

    kl_ctl: the penalty's coefficient, which may adapt from batch to batch.
    """

    def __init__(self, config: Config, critic: Critic | None) -> None:
        self._config, self._critic = config, critic
        self.kl_ctl = config.actor.kl_ctl if config.actor.penalises_kl else 0.0

    def __call__(
        self, batch: Batch, kl: Sequence[Sequence[float]] | None = None
    ) -> tuple[Batch, dict[str, float]]:
        """The batch with an advantage for each token, and with a critic its values and targets; and
        metrics. kl: of each sample the estimate at each trained token.

        Tokens that are too old to be trained are a sample's first ones, and an advantage depends on
        nothing that lies before it.
        """
        actor, samples = self._config.actor, batch.samples
        if self._critic is None and kl is None:
            return batch, {}
        values = [[0.0] * len(s.trained) for s in samples]
        if self._critic is not None:
            values = self._critic.values(samples)
        advantages = []
        for index, sample in enumerate(samples):
            earned = [-self.kl_ctl * k for k in kl[index]] if kl else [0.0] * len(sample.trained)
            earned[-1] += sample.advantages[-1]
            advantages.append(gae(earned, values[index], actor.discount, actor.gae_lambda))
        scaled = advantages
        if actor.adv_norm == "batch":
            scaled = whitened(advantages, [[1] * len(a) for a in advantages])
        credited = [replace(sample, advantage=a) for sample, a in zip(samples, scaled, strict=True)]
        if self._critic is not None:
            credited = [
                replace(sample, values=v, returns=[x + y for x, y in zip(a, v, strict=True)])
                for sample, a, v in zip(credited, advantages, values, strict=True)
            ]
        return replace(batch, samples=credited), self._adapt(kl)

    def _adapt(self, kl: Sequence[Sequence[float]] | None) -> dict[str, float]:
        """Metrics of this batch, and the coefficient of the next one."""
        if not kl:
            return {}
        actor, total = self._config.actor, math.fsum(k for sample in kl for k in sample)
        of_sample = total / len(kl)
        told = {
            "loss/ref_kl": total / sum(map(len, kl)),
            "kl/per_sample": of_sample,
            "kl/coefficient": self.kl_ctl,
        }
        if actor.kl_target is not None:
            gain = len(kl) / actor.kl_horizon
            self.kl_ctl = adapted(self.kl_ctl, of_sample, actor.kl_target, gain)
        return told
