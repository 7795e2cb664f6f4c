"""Sampling is exact in distribution, pure, and deaf to who shares the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arealite.engines.embedded.sampling import draw, draw_cut, uniforms
from arealite.engines.embedded.slots import BROKEN, ENDED, RUNNING, SlotParams, SlotTable

DRAWS = 40_000


def kept_by_hand(p: list[float], top_p: float, top_k: int) -> set[int]:
    """The ids that both cuts keep, in plain Python."""
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))
    kept, mass = set(), 0.0
    for rank, i in enumerate(order):
        if rank and (rank >= top_k or mass >= top_p):
            break
        kept.add(i)
        mass += p[i]
    return kept


@pytest.mark.parametrize("vary", ["seeds", "positions"])
def test_uniforms_are_uniform_and_uncorrelated(vary: str) -> None:
    running, fixed = torch.arange(DRAWS), torch.full((DRAWS,), 7)
    pair = (running, fixed) if vary == "seeds" else (fixed, running)
    u = uniforms(*pair)
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, 50, 0, 1)
    chi_square = ((counts - DRAWS / 50) ** 2 / (DRAWS / 50)).sum()
    assert chi_square < 49 + 6 * math.sqrt(2 * 49)
    neighbours = torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1]
    assert neighbours.abs() < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 1 << 62), (0.7, 1 << 62), (1.0, 3), (0.9, 4)])
def test_draws_follow_the_distribution(top_p: float, top_k: int) -> None:
    logits = torch.tensor([1.5, -0.3, 0.0, 2.0, -4.0, 1.0, 0.9])
    rows = logits.log_softmax(-1).expand(DRAWS, -1)
    u = uniforms(torch.arange(DRAWS), torch.full((DRAWS,), 3))
    if top_k > 10 and top_p == 1.0:
        tokens = draw(rows, u)
    else:
        tokens = draw_cut(rows, u, torch.full((DRAWS,), top_p), torch.full((DRAWS,), top_k))
    p = logits.softmax(-1)
    kept = kept_by_hand(p.tolist(), top_p, top_k)
    wanted = torch.tensor([x if i in kept else 0.0 for i, x in enumerate(p.tolist())])
    wanted = wanted / wanted.sum() * DRAWS
    counts = torch.bincount(tokens, minlength=7).float()
    assert (counts[wanted == 0] == 0).all()
    deviation = (counts - wanted).abs()
    assert (deviation <= 5 * wanted.sqrt() + 1e-9).all()


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-30.0, -1.0, 0.0, 0.5, 3.0]), min_size=2, max_size=12),
    top_p=st.floats(0.01, 1.0),
    top_k=st.integers(1, 14),
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(0, 2**20),
)
def test_cuts_keep_what_they_should(
    logits: list[float], top_p: float, top_k: int, seed: int, position: int
) -> None:
    row = torch.tensor([logits]).log_softmax(-1)
    u = uniforms(torch.tensor([seed]), torch.tensor([position]))
    token = int(draw_cut(row, u, torch.tensor([top_p]), torch.tensor([top_k])))
    # A boundary may fall either way by rounding: accept what either neighbour of top_p keeps.
    p = row[0].exp().tolist()
    assert token in kept_by_hand(p, min(1.0, top_p + 1e-5), top_k)


def test_a_token_of_probability_0_is_never_drawn() -> None:
    row = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).log_softmax(-1)
    edges = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(row.expand(4, -1), edges).tolist() == [1, 1, 3, 3]


def params(seed: int, **changes: float) -> SlotParams:
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": -1} | changes
    return SlotParams(
        tokens=(1, 2), last=50, barred=2, stop_ids=(), seed=seed,
        temperature=values["temperature"], top_p=values["top_p"], top_k=int(values["top_k"]),
    )  # fmt: skip


MIXED = [
    params(5),
    params(6, temperature=0.0),
    params(7, top_p=0.6),
    params(8, temperature=0.5, top_k=3),
    params(9, temperature=1.7),
]


def test_a_slot_draws_the_same_alone_and_in_company() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(20, len(MIXED), 31)
    together = SlotTable(8, 64, torch.device("cpu"))
    together.join(range(len(MIXED)), MIXED)
    for step in logits:
        together.step(step, len(MIXED))
    for slot, one in enumerate(MIXED):
        alone = SlotTable(8, 64, torch.device("cpu"))
        alone.join([0], [one])
        for step in logits:
            alone.step(step[slot : slot + 1], 1)
        assert alone.read(0, 2, 22) == together.read(slot, 2, 22)


def test_logprobs_are_under_the_temperature_and_not_renormalised_for_cuts() -> None:
    torch.manual_seed(1)
    logits = torch.randn(len(MIXED), 31)
    table = SlotTable(8, 64, torch.device("cpu"))
    table.join(range(len(MIXED)), MIXED)
    table.step(logits, len(MIXED))
    for slot, one in enumerate(MIXED):
        [token], [logprob] = table.read(slot, 2, 3)
        wanted = (logits[slot] / (one.temperature or 1.0)).log_softmax(-1)[token]
        assert logprob == pytest.approx(float(wanted), abs=1e-6)
        if one.temperature == 0:
            assert token == int(logits[slot].argmax())


def test_a_step_says_what_became_of_each_slot() -> None:
    table = SlotTable(4, 16, torch.device("cpu"))
    ends = SlotParams((1,), 1, 1, 0.0, 1.0, -1, (), 0)
    stops = SlotParams((1,), 9, 1, 0.0, 1.0, -1, (3, 5), 0)
    too_early = SlotParams((1,), 9, 4, 0.0, 1.0, -1, (5,), 0)
    table.join([0, 1, 2, 3], [ends, stops, too_early, stops])
    logits = torch.zeros(4, 8)
    logits[:, 5] = 2.0
    logits[2, 4] = 1.0
    logits[3, 0] = torch.nan
    assert table.step(logits, 4) == [ENDED, ENDED, RUNNING, BROKEN]
    assert table.read(2, 1, 2)[0] == [4]  # the stop token was barred
