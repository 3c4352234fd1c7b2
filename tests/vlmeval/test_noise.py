from __future__ import annotations

import json
import math
import random

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.errors import ConfigError
from vlmeval.cli import main
from vlmeval.metrics.pair_tests import mcnemar
from vlmeval.noise import judge


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["noise", *arguments])


def test_the_published_gain_of_idefics2_is_inside_noise() -> None:
    found = judge(85.8, 85.9, 14216)
    assert found.verdict == "inside noise"
    # The naive standard error of 85.8 % at n = 14,216 is 0.29 points.
    assert found.interval == pytest.approx(
        (0.1 - 1.96 * 0.29 * math.sqrt(2), 0.1 + 1.96 * 0.29 * math.sqrt(2)), abs=0.02
    )
    assert found.mdd == pytest.approx(2.80 * 0.29 * math.sqrt(2), abs=0.02)
    # Rounded figures: between 0.0 and 0.2 points, 0 to 28 questions.
    assert found.net == (0, 28)
    lost = (found.most_changed - 28) // 2
    assert mcnemar(lost, lost + 28) <= 0.05 < mcnemar(lost + 1, lost + 29)
    assert "+0.1 at n = 14,216 is inside noise" in found.words[0]


def test_with_a_share_of_changed_answers_it_is_the_paired_interval() -> None:
    # b = 1,887 and c = 1,260 of 14,216: the share that changed is 22.14 %, the difference 4.41 points.
    found = judge(89.6, 85.2, 14216, changed=100 * (1887 + 1260) / 14216)
    assert found.paired is not None
    half = 196 * math.sqrt((1887 + 1260) / 14216**2 - (1887 - 1260) ** 2 / 14216**3)
    assert found.paired == pytest.approx((-4.4 - half, -4.4 + half), abs=1e-3)
    assert found.verdict == "beyond noise"


@pytest.mark.parametrize(("figures", "verdict"), [((81.4, 85.9), "beyond noise"), ((85.4, 86.4), "beyond noise")])
def test_other_published_rows(figures: tuple[float, float], verdict: str) -> None:
    assert judge(*figures, 14216).verdict == verdict


def test_few_questions_stay_honest() -> None:
    assert judge(0, 100, 5, decimals=(0, 0)).interval[0] < 60
    found = judge(85.8, 86, 100, decimals=(1, 0))
    assert found.net == (0, 0) and found.most_changed == 0
    assert "inside noise however" in " ".join(found.words)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 20000), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2))
def test_judgements_hang_together(n: int, one: float, other: float, digits: int) -> None:
    before, after = (round(100 * round(share * n) / n, digits) for share in (one, other))
    found = judge(before, after, n, decimals=(digits, digits)) if max(before, after) > 1 or digits < 2 else None
    if found is None:
        return
    balance = abs(round(one * n) - round(other * n))
    assert found.net[0] <= balance <= found.net[1]
    assert (found.verdict == "inside noise") == (found.interval[0] <= 0 <= found.interval[1])
    assert (found.p > 0.05) == (found.verdict == "inside noise") or abs(found.p - 0.05) < 1e-3
    assert 0 <= found.most_changed <= n
    mirrored = judge(after, before, n, decimals=(digits, digits))
    assert mirrored.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert mirrored.most_changed == found.most_changed


def test_it_sees_what_it_says() -> None:
    """Two models of unequal skill, 2,000 questions each: the detectable difference is found four times in five."""
    rng = random.Random(3)
    n, base = 2000, 0.8
    gain = judge(80, 83.5, n).mdd / 100
    found = 0
    for _ in range(300):
        right = [sum(rng.random() < share for _ in range(n)) for share in (base, base + gain)]
        found += judge(*(100 * count / n for count in right), n, decimals=(6, 6)).verdict == "beyond noise"
    assert 0.7 < found / 300 < 0.9


def test_the_command() -> None:
    result = command("85.8", "85.9", "88.8", "--n", "14216")
    assert result.exit_code == 0, result.output
    assert "85.8 → 85.9: +0.1 at n = 14,216 is inside noise." in result.stdout
    assert "85.8 → 88.8: +3.0 at n = 14,216 is beyond noise." in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    content = json.loads(command("85.8", "85.9", "--n", "14216", "--changed", "5", "--json").stdout)
    assert content[0]["verdict"] == "inside noise" and content[0]["paired"][0] < 0 < content[0]["paired"][1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("85.8", "--n", "10"), "two or more figures"),
        (("85.8", "nan", "--n", "10"), "'nan' is no percentage"),
        (("0.858", "0.859", "--n", "10"), "write 85.8 85.9"),
        (("85.8", "185.9", "--n", "10"), "185.9 is no percentage"),
        (("85.8", "85.9", "--n", "0"), "at least 1"),
        (("81.4", "85.9", "--n", "100", "--changed", "2"), "at least the difference"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = command(*arguments)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


def test_mistakes_of_the_function() -> None:
    with pytest.raises(ConfigError, match="no percentage"):
        judge(-1, 5, 10)
    with pytest.raises(ConfigError, match="at most 100"):
        judge(50, 60, 10, changed=120)
