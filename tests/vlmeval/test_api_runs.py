"""Whole evaluations of a served model: interrupted, moved to another machine, gone on with, scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, said

from vlmdata.errors import ConfigError
from vlmeval import run
from vlmeval.models import server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def evaluated(there: Loopback, world: Path, out: Path, **options: Any) -> dict[str, Any]:
    sets = {"concurrency": "2", "retries": "0"}
    return run.evaluate(
        "amber", data=world, endpoint=there.url, model="m", out=out, quiet=True, sets=sets, part="existence", **options
    )


def test_a_run_goes_on_where_the_model_is_served_next(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Loopback(lambda body, number: said("No") if number <= 3 else (401, {"error": "expired"})) as first:
        with pytest.raises(ConfigError, match="expired.*--resume"):
            evaluated(first, world, out)
    kept = [json.loads(line)["id"] for line in (out / "responses.jsonl").read_text().splitlines()]
    # One that is still on its way when another is refused is asked again.
    assert 0 < len(kept) <= 3
    with Loopback(lambda body, number: said("No") | {"model": "another"}) as stranger:
        with pytest.raises(ConfigError, match="reported_model was 'served', is 'another'"):
            evaluated(stranger, world, out, resume=True)
        assert len(stranger.asked) == 1, "only the probe"
    with Loopback(lambda body, number: said("No")) as second:
        report = evaluated(second, world, out, resume=True)
    assert len(second.asked) == 1 + 8 - len(kept)
    assert report["coverage"]["complete"] and report["official"]["existence"]["accuracy"] > 99
    assert report["usage"]["answers"] == 8 and report["usage"]["prompt_tokens"] == 8 * 7
    assert report["protocol"]["answers"]["endpoint"] == second.url


def test_failures_are_listed_and_asked_again(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    respond = lambda body, number: (400, {"error": "too large"}) if number in (2, 5) else said("No")  # noqa: E731
    with Loopback(respond) as there:
        report = evaluated(there, world, out)
        failed = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
        assert [row["error"] for row in failed] == ["HTTP 400: too large"] * 2
        assert (report["coverage"]["answered"], report["coverage"]["failed"]) == (6, 2)
        assert any("2 \N{MULTIPLICATION SIGN} HTTP 400" in note for note in report["notes"])
        there.asked.extend([{}] * 10)
        assert evaluated(there, world, out, resume=True)["coverage"]["complete"]
    assert not (out / "failures.jsonl").exists()


def test_logits_reach_the_report(world: Path, tmp_path: Path) -> None:
    top = [{"token": "No", "logprob": -0.1}, {"token": "The", "logprob": -3.0}]
    logprobs = {"content": [{"token": "No", "logprob": -0.1, "top_logprobs": top}]}
    with Loopback(lambda body, number: said("No", logprobs=logprobs)) as there:
        report = evaluated(there, world, tmp_path / "run", answers="logits")
    assert report["official"]["existence"]["accuracy"] > 99
    assert report["usage"]["not_among_likeliest"] == 8
    assert any("8 of 8 served answers have a word that is not among" in note for note in report["notes"])
