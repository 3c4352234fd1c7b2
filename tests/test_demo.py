"""The demo's own commands on a handful of rows, in one process: raw files in, comparison out."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
SMALLER = {
    ("vlmdata", "sample"): ["--rows", "24", "--test-scenes", "3"],
    ("vlmtrain", "sft"): ["--max-steps", "2"],
    ("vlmtrain", "dpo"): ["--max-steps", "2"],
}


def commands(out: Path) -> list[list[str]]:
    script = (ROOT / "demo.sh").read_text().replace("\\\n", " ")
    lines = re.findall(r"^run (vlm.*)$", script, flags=re.MULTILINE)
    return [shlex.split(line.replace("$out", str(out)).replace("$seed", "1")) for line in lines]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    for program, *arguments in commands(out):
        main = importlib.import_module(f"{program}.cli").main
        arguments += SMALLER.get((program, arguments[0]), [])
        result = CliRunner().invoke(main, arguments, prog_name=program, catch_exceptions=False)
        assert result.exit_code == 0, (program, arguments, result.output)
    return out


def test_every_step_leaves_its_files(made: Path) -> None:
    for name in ("shapes", "rlaif_v", "food101", "football", "plates"):
        manifest = json.loads((made / "shards" / name / "manifest.json").read_text())
        assert manifest["rows"]["kept"] > 0 and not manifest["rows"]["rejected"]
    for name in ("sft", "dpo"):
        run = made / "runs" / name
        assert (run / "adapter_model.safetensors").exists() and not (run / "ref").exists()
        about = json.loads((run / "vlmtrain.json").read_text())
        assert about["base"] == "vlmtrain:tiny"
        assert str(made) not in (run / "adapter_config.json").read_text() + json.dumps(about)


def test_the_three_evaluations_are_complete_and_differ_in_model_only(made: Path) -> None:
    reports = [json.loads((made / "evals" / name / "report.json").read_text()) for name in ("base", "sft", "dpo")]
    asked = json.loads((made / "raw" / "amber" / "query" / "query_all.json").read_text())
    for report in reports:
        assert report["coverage"]["complete"] and report["coverage"]["expected"] == len(asked)
        assert 0 <= report["official"]["discriminative"]["accuracy"] <= 100
        assert set(report["official"]["generative"]) == {"chair", "cover", "hal", "cog"}


def test_the_comparison_names_the_three_stages(made: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (made / name).read_text()
        for column in ("base", "SFT", "SFT+DPO", "CHAIR", "Cover", "Hal", "F1"):
            assert column in text, (name, column)
    assert not re.search(r"(?:src|href)=[\"']https?:", (made / "report.html").read_text())
