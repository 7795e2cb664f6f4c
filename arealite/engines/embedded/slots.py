"""What the sampler knows of each running sequence, as tensors indexed by slot.

A step reads and writes all slots at once; Python looks at a sequence only when it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arealite.engines.embedded.sampling import draw, draw_cut, uniforms

RUNNING, ENDED, BROKEN = 0, 1, 2
"""What a step says of a slot. BROKEN: the log-probability of its token is not finite."""

_INTS = ("token", "position", "last", "barred", "seed", "top_k")


@dataclass(frozen=True, slots=True)
class SlotParams:
    """The parameters of one sequence, as the sampler needs them.

    tokens: the prompt, or the prompt and what was generated so far. last: the highest position
    that a token may take. barred: stop tokens may not take a position below this. temperature 0
    is greedy. top_k -1 keeps all.
    """

    tokens: Sequence[int]
    last: int
    barred: int
    temperature: float
    top_p: float
    top_k: int
    stop_ids: Sequence[int]
    seed: int

    @property
    def cuts(self) -> bool:
        """Whether anything keeps tokens out of the draw."""
        return self.top_p < 1.0 or self.top_k > 0

    @property
    def rank_limit(self) -> int:
        """top_k as a number of tokens."""
        return self.top_k if self.top_k > 0 else 1 << 62


class SlotTable:
    """The per-slot state of up to `slots` sequences of up to `context` tokens."""

    def __init__(self, slots: int, context: int, device: torch.device) -> None:
        self.slots, self.context, self.device = slots, context, device
        self.ints = torch.zeros((len(_INTS), slots), dtype=torch.int64, device=device)
        self.token, self.position, self.last, self.barred, self.seed, self.top_k = self.ints
        self.floats = torch.ones((2, slots), device=device)
        self.temperature, self.top_p = self.floats
        self.stops = torch.full((slots, 1), -1, dtype=torch.int64, device=device)
        self.tokens = torch.zeros((slots, context), dtype=torch.int64, device=device)
        self.logprobs = torch.zeros((slots, context), device=device)
        self._rows = torch.arange(slots, device=device) * context
        self._params: dict[int, SlotParams] = {}
        self._fresh = False

    def join(self, slots: Sequence[int], params: Sequence[SlotParams]) -> None:
        """Puts sequences into slots. The last token of each is the next to be fed."""
        where = torch.tensor(slots, device=self.device)
        ints = [
            (p.tokens[-1], len(p.tokens) - 1, p.last, p.barred, p.seed, p.rank_limit)
            for p in params
        ]
        self.ints.index_copy_(1, where, torch.tensor(ints, device=self.device).t())
        floats = [(p.temperature or 1.0, p.top_p) for p in params]
        self.floats.index_copy_(1, where, torch.tensor(floats, device=self.device).t())
        self._write_stops(where, params)
        longest = max(len(p.tokens) for p in params)
        padded = [[*p.tokens, *[0] * (longest - len(p.tokens))] for p in params]
        self.tokens[:, :longest].index_copy_(0, where, torch.tensor(padded, device=self.device))
        self._params.update(zip(slots, params, strict=True))
        self._fresh = False

    def move(self, source: int, target: int) -> None:
        """Moves a sequence to another slot."""
        for table in (self.ints, self.floats):
            table[:, target] = table[:, source]
        for rows in (self.stops, self.tokens, self.logprobs):
            rows[target] = rows[source]
        self._params[target] = self._params.pop(source)
        self._fresh = False

    def leave(self, slot: int) -> None:
        """Forgets a sequence."""
        del self._params[slot]
        self._fresh = False

    def read(self, slot: int, start: int, end: int) -> tuple[list[int], list[float]]:
        """Tokens and their log-probabilities at positions start..end-1."""
        tokens: list[int] = self.tokens[slot, start:end].tolist()
        logprobs: list[float] = self.logprobs[slot, start:end].tolist()
        return tokens, logprobs

    @torch.inference_mode()
    def step(self, logits: Tensor, n: int) -> list[int]:
        """Draws the next token of slots 0..n-1 from float32 logits [n, vocab] and feeds it on.

        Returns RUNNING, ENDED or BROKEN for each slot.
        """
        if not self._fresh:
            self._look(n)
        if self._tempered:
            logits = logits / self.temperature[:n, None]
        logprobs = logits.log_softmax(-1)
        position = self.position[:n]
        position += 1
        token = self._choose(self._barred(logprobs, n), n)
        chosen = logprobs.gather(-1, token[:, None]).squeeze(-1)
        at = self._rows[:n] + position
        self.tokens.view(-1).index_copy_(0, at, token)
        self.logprobs.view(-1).index_copy_(0, at, chosen)
        self.token[:n] = token
        ended = position >= self.last[:n]
        if self._stopping:
            stopped = (token[:, None] == self.stops[:n]).any(-1)
            ended |= stopped & (position >= self.barred[:n])
        state = torch.where(chosen.isfinite(), ended.to(torch.int8), BROKEN)
        flags: list[int] = state.tolist()
        return flags

    def _barred(self, logprobs: Tensor, n: int) -> Tensor:
        """The log-probabilities with the stop tokens removed where it is too early for them."""
        if not self._barring:
            return logprobs
        early = (self.position[:n] < self.barred[:n])[:, None] & (self.stops[:n] >= 0)
        rows, columns = early.nonzero(as_tuple=True)
        allowed = logprobs.clone()
        allowed[rows, self.stops[rows, columns]] = -torch.inf
        return allowed

    def _choose(self, logprobs: Tensor, n: int) -> Tensor:
        if self._all_greedy:
            return logprobs.argmax(-1)
        uniform = uniforms(self.seed[:n], self.position[:n])
        token = draw(logprobs, uniform)
        for rows, choose in ((self._cut, self._draw_cut), (self._greedy, self._best)):
            if rows is not None:
                token[rows] = choose(logprobs[rows], uniform[rows], rows)
        return token

    def _draw_cut(self, logprobs: Tensor, uniform: Tensor, rows: Tensor) -> Tensor:
        return draw_cut(logprobs, uniform, self.top_p[rows], self.top_k[rows])

    @staticmethod
    def _best(logprobs: Tensor, uniform: Tensor, rows: Tensor) -> Tensor:
        return logprobs.argmax(-1)

    def _look(self, n: int) -> None:
        """Notes which rare paths this set of sequences needs; again after every change of it."""
        params = [self._params[slot] for slot in range(n)]
        greedy = [i for i, p in enumerate(params) if p.temperature == 0]
        cut = [i for i, p in enumerate(params) if p.temperature != 0 and p.cuts]
        self._greedy = torch.tensor(greedy, device=self.device) if greedy else None
        self._cut = torch.tensor(cut, device=self.device) if cut else None
        self._all_greedy = len(greedy) == n
        self._tempered = any(p.temperature not in (0.0, 1.0) for p in params)
        self._stopping = any(p.stop_ids for p in params)
        self._barring = any(p.stop_ids and p.barred > len(p.tokens) for p in params)
        self._fresh = True

    def _write_stops(self, where: Tensor, params: Sequence[SlotParams]) -> None:
        most = max(len(p.stop_ids) for p in params)
        if most > self.stops.shape[1]:
            more = self.stops.new_full((self.slots, most), -1)
            more[:, : self.stops.shape[1]] = self.stops
            self.stops = more
        width = self.stops.shape[1]
        rows = [[*p.stop_ids, *[-1] * (width - len(p.stop_ids))] for p in params]
        self.stops.index_copy_(0, where, torch.tensor(rows, device=self.device))
