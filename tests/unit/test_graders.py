"""Answers, numbers and forms out of hostile text; and the real GSM8K."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from arealite.errors import Unscorable
from arealite.rewards import formats, gsm8k, hostile
from arealite.rewards.arithmetic import ExpressionError, parse
from arealite.rewards.extract import MOST_ANSWER, Form, Which, extract, last_answer
from arealite.rewards.numbers import number
from arealite.rewards.scorer import checked

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"


@pytest.mark.parametrize(
    ("text", "form", "first", "last", "only"),
    [
        ("<answer> 1 </answer>", "tag", "1", "1", "1"),
        ("<answer>1</answer> <answer>2</answer>", "tag", "1", "2", None),
        ("<answer>1</answer> <answer>2", "tag", "1", "1", "1"),
        ("<answer>a<answer>1</answer>b</answer>", "tag", "1", "1", "1"),
        ("</answer>x<answer>1</answer>", "tag", "1", "1", "1"),
        ("<answer>1</answer></answer>", "tag", "1", "1", "1"),
        ("<answer>1", "tag", None, None, None),
        ("</answer>1<answer>", "tag", None, None, None),
        ("<answer></answer>", "tag", "", "", ""),
        (r"\boxed{1}", "boxed", "1", "1", "1"),
        (r"\boxed{\frac{1}{2}} or \boxed{x_{1}}", "boxed", r"\frac{1}{2}", "x_{1}", None),
        (r"\boxed{\{1\}}", "boxed", r"\{1\}", r"\{1\}", r"\{1\}"),
        (r"\boxed{1} \boxed{2", "boxed", "1", "1", "1"),
        (r"\boxed 1", "boxed", None, None, None),
        (r"\boxed{}", "boxed", "", "", ""),
        ("so\n#### 72\nbye", "hash", "72", "72", "72"),
        ("#### 1\n#### 2", "hash", "1", "2", None),
        ("#### 1\n####", "hash", "1", "1", "1"),
        ("### 1", "hash", None, None, None),
        ("it is 1,234.5 or -3.", "number", "1,234.5", "-3", None),
        ("7", "number", "7", "7", "7"),
        ("\u0661 \u00b2 \uff11", "number", None, None, None),
        ("", "number", None, None, None),
    ],
)
def test_the_answer_by_form_and_policy(
    text: str, form: Form, first: str | None, last: str | None, only: str | None
) -> None:
    found = {which: extract(text, form, which) for which in ("first", "last", "only")}
    assert found == {"first": first, "last": last, "only": only}
    if form == "tag":
        assert (last_answer(text) or "").strip() == (last or "")


def test_an_endless_answer_is_none() -> None:
    inside = "1" * (MOST_ANSWER - 2)
    assert extract(f"\\boxed{{{inside}}}", "boxed") == inside
    assert extract(f"\\boxed{{{inside}1}}", "boxed") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        (" -3 ", -3),
        ("+3", 3),
        ("1,234,567.50", Fraction(2469135, 2)),
        ("$18.00", 18),
        (r"\$18", 18),
        ("-$5", -5),
        (".5", Fraction(1, 2)),
        ("18.", 18),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("50%", 50),
        (r"50\%", 50),
        *[(text, None) for text in ("", "-", ".", "1/0", "1,23", "12,34", "1e9", "0x1F", "1_000")],
        *[(text, None) for text in ("nan", "inf", "1 2", "1.2.3", "--1", "x", "1" * 65)],
        *[(text, None) for text in ("\u0661", "\uff11", "1\u200b2", "1\x00", "\ud800")],
    ],
)
def test_numbers_are_exact_or_none(text: str, value: Fraction | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("... #### 72", 1.0),
        ("\\boxed{72.0}", 1.0),
        ("<answer>$72</answer>", 1.0),
        ("#### 71", 0.1),
        ("#### 71\n\\boxed{72}", 0.1),
        ("#### 72\n#### 71", 0.1),
        ("it is 72", 0.0),
        ("#### seventy-two", 0.0),
        ("#### 70+2", 0.0),
    ],
)
def test_gsm8k_scores_one_number(text: str, score: float) -> None:
    assert gsm8k.compute_score(text, "so 70+2\n#### 72", format_score=0.1) == score


def test_gsm8k_without_a_right_answer_is_an_error_of_the_data() -> None:
    with pytest.raises(ValueError, match=r"ends in no `#### number`: 'no answer'"):
        gsm8k.compute_score("#### 72", "no answer")


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"the data set is not at {GSM8K}")
def test_the_real_gsm8k() -> None:
    """Every gold answer parses; each gold solution is right, and the next row's is not."""
    answers = [
        json.loads(line)["answer"]
        for name in ("train", "test")
        for line in (GSM8K / f"{name}.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 8792
    golds = [gsm8k.gold(answer) for answer in answers]
    # by another way: these are all the characters that the data set's answers have
    plain = [Fraction(a.rpartition("####")[2].strip().replace(",", "")) for a in answers]
    assert golds == plain
    assert all(gsm8k.compute_score(answer, answer) == 1.0 for answer in answers)
    for i, answer in enumerate(answers):
        following = (i + 1) % len(answers)
        equal = golds[i] == golds[following]
        assert gsm8k.compute_score(answers[following], answer) == float(equal)


STRICT = "<think>\nhm\n</think>\n<answer>\n4\n</answer>\n"


@pytest.mark.parametrize(
    ("text", "strict", "soft", "tags", "integer"),
    [
        (STRICT, 1.0, 1.0, 1.0, 1.0),
        ("<think>hm</think> <answer>4</answer>", 0.0, 1.0, 1.0, 1.0),
        ("<think>hm</think> so <answer>4</answer>", 0.0, 0.0, 1.0, 1.0),
        (STRICT + "and", 0.0, 0.0, 0.994, 1.0),
        (STRICT + "x" * 10_000, 0.0, 0.0, 0.75, 1.0),
        ("<answer>\uff14</answer>", 0.0, 0.0, 0.5, 0.0),
        ("<answer>4.0</answer>", 0.0, 0.0, 0.5, 0.0),
        ("<think>" + STRICT, 0.0, 0.0, 0.75, 1.0),
        ("<answer>4</answer><think></think>", 0.0, 0.0, 0.97, 1.0),
        ("", 0.0, 0.0, 0.0, 0.0),
        ("<think>" * 1000 + "</answer>" * 1000, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_forms(text: str, strict: float, soft: float, tags: float, integer: float) -> None:
    assert formats.strict_format(text) == strict
    assert formats.soft_format(text) == soft
    assert formats.count_tags(text) == pytest.approx(tags, abs=1e-12)
    assert formats.integer_answer(text) == integer


def test_the_name_of_the_first_tag_is_free() -> None:
    assert formats.strict_format(STRICT.replace("think", "reasoning"), thought="reasoning") == 1.0


def _arithmetic(text: str) -> float:
    try:
        return float(parse(extract(text) or text).value)
    except ExpressionError:
        return 0.0


FORMS: tuple[Form, ...] = ("tag", "boxed", "hash", "number")
POLICIES: tuple[Which, ...] = ("first", "last", "only")
GRADERS: dict[str, Callable[[str], float]] = {
    "arithmetic": _arithmetic,
    "gsm8k": lambda text: gsm8k.compute_score(text, "#### 72"),
    "number": lambda text: float(number(text) is not None),
    "strict": formats.strict_format,
    "soft": formats.soft_format,
    "tags": formats.count_tags,
    "integer": formats.integer_answer,
    **{
        f"{form} {which}": lambda text, form=form, which=which: float(  # type: ignore[misc]
            extract(text, form, which) is not None
        )
        for form in FORMS
        for which in POLICIES
    },
}


@pytest.mark.parametrize("grader", GRADERS)
def test_hostile_texts_get_a_finite_score(grader: str) -> None:
    for text in [*hostile.texts(), *hostile.fuzzed(500)]:
        try:
            assert math.isfinite(GRADERS[grader](text))
        except Exception as error:
            raise AssertionError(f"{text[:100]!r} of {len(text)} characters") from error


@pytest.mark.million
@pytest.mark.parametrize("grader", GRADERS)
def test_a_hundred_thousand_hostile_texts(grader: str) -> None:
    for text in hostile.fuzzed(100_000, seed=1):
        assert math.isfinite(GRADERS[grader](text))


def test_the_corpus_is_the_same_each_time_and_wide() -> None:
    assert list(hostile.texts()) == list(hostile.texts())
    assert list(hostile.fuzzed(50, 3)) == list(hostile.fuzzed(50, 3))
    assert len(set(hostile.texts())) > 400
    assert len(set(hostile.fuzzed(1000))) > 950
    with pytest.raises(Unscorable):
        checked(float("nan"), "probe")
