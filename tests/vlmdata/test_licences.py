from __future__ import annotations

import pytest

from vlmdata.licences import non_commercial
from vlmdata.source import load, names


@pytest.mark.parametrize(
    "licence",
    [
        "CC-BY-NC-4.0",
        "cc-by-nc-sa-3.0",
        "CC BY-NC-ND 4.0",
        "CC_BY_NC",
        "cc-nc-by",
        "BY-NC",
        "Creative Commons Attribution-NonCommercial 4.0 International",
        "non-commercial use",
        "Noncommercial",
        "non commercial research",
        "research only",
        "Research use only.",
        "for research purposes only",
        "academic and research use only",
        "research, educational or personal use only",
        "for academic research only",
        "only for research",
        "to be used solely for academic research",
        "limited to research",
        "restricted to educational use",
        "no commercial use",
        "not for commercial use",
        "may not be used for commercial purposes",
        "Commercial use is prohibited",
        "without commercial use",
        "MIT for code, CC-BY-NC-4.0 for data",
    ],
)
def test_licences_that_keep_commerce_out(licence: str) -> None:
    assert non_commercial(licence)


@pytest.mark.parametrize(
    "licence",
    [
        "",
        "unknown",
        "your own",
        "none stated",
        "Apache-2.0",
        "MIT",
        "CC0-1.0",
        "CC-BY-4.0",
        "CC-BY-SA-4.0",
        "CC-BY-ND-4.0",
        "NCSA",
        "University of Illinois/NCSA Open Source License",
        "NCBI data policy",
        "SYNC-1.0",
        "free for research and commercial use",
        "for commercial and non-commercial use",
        "for both non-commercial and commercial purposes",
        "commercial or noncommercial",
        "not limited to research",
        "not restricted to non-commercial use",
        "not only for research",
        "research and development licence",
        "each set its own; prompts CC-BY-4.0",
        "OpenRAIL-M",
        "commercial use allowed",
        "read-only",
    ],
)
def test_false_friends(licence: str) -> None:
    assert not non_commercial(licence)


def test_the_sources() -> None:
    assert [name for name in names() if non_commercial(load(name).licence)] == ["rlaif_v", "rlhf_v"]
