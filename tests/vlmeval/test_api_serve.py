"""The real ``transformers serve`` on loopback: a served model answers what the same model answers when loaded here."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from transformers.utils.import_utils import is_serve_available

from vlmdata.errors import ConfigError
from vlmeval import run
from vlmeval.models import server
from vlmeval.models.api import Api
from vlmeval.models.local import Local
from vlmeval.task import Item, Response

if not is_serve_available():
    pytest.skip("transformers serve needs the extra serve: pip install 'vlm-toolkit[serve]'", allow_module_level=True)

FAMILIES = ("llava", "qwen2_vl", "smolvlm")
LIMITS = {"answer": 8, "text": 24}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_models
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("served")
    for family in FAMILIES:
        tiny_models.make(family, folder / family, head_gain=20.0)
    return folder


@pytest.fixture(scope="module")
def address(models: Path) -> Iterator[str]:
    """Not pinned to a model: it loads whatever folder a request names."""
    from transformers.cli.serve import Serve

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    serve = Serve(device="cpu", host="127.0.0.1", port=port, non_blocking=True, log_level="error")
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(400):
            try:
                if httpx.get(f"{url}/health", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            pytest.fail("transformers serve does not come up")
        yield url
    finally:
        serve.kill_server()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    folder = tmp_path_factory.mktemp("pictures")
    for number, kind in enumerate(("png", "jpg")):
        values = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.{kind}")
    return folder


def turn(role: str, *parts: str) -> dict[str, Any]:
    shown = [{"type": "image", "text": None} if part == "<image>" else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": shown}


CHAT = (
    turn("system", "Be brief."),
    turn("user", "<image>", "What colour is it?"),
    turn("assistant", "It is a red square."),
    turn("user", "And this?", "<image>"),
)
ITEMS = [
    *(
        Item(number, f"Is it red? {number}", (f"{number % 2}.{'pj'[number % 2]}{'np'[number % 2]}g",), None, ("all",))
        for number in range(4)
    ),
    Item(4, "Describe the picture.", ("1.jpg",), None, ("all",), "text"),
    Item(5, "Which?", ("0.png", "1.jpg"), None, ("all",)),
    Item(6, "And this?", ("0.png", "1.jpg"), None, ("all",), turns=CHAT),
]


def answered(model: Api | Local, items: list[Item]) -> dict[Any, Response]:
    return {one.id: one for batch in model.answer(items) for one in batch}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_answers_as_the_model_does_here(family: str, address: str, models: Path, pictures: Path) -> None:
    shared: dict[str, Any] = {"images": pictures, "max_new_tokens": LIMITS, "prompt_suffix": "Short."}
    served = Api(address, str(models / family), **shared, concurrency=3)
    here = Local(str(models / family), None, **shared, batch_size=1, dtype="float32")
    there, at_home = answered(served, ITEMS), answered(here, ITEMS)
    assert [one.error for one in there.values()] == [None] * len(ITEMS)
    assert {ident: one.text for ident, one in there.items()} == {ident: one.text for ident, one in at_home.items()}
    assert len({one.text for one in there.values()}) > 1, "the pictures make no difference"
    assert served.describe()["reported_model"] == f"{models / family}@main"
    assert there[4].detail["tokens"]["completion"] <= 24 and there[4].detail["tokens"]["prompt"] > 10


def test_it_gives_no_logprobs(address: str, models: Path) -> None:
    model = Api(f"{address}/v1", str(models / "llava"), images=None, max_new_tokens=LIMITS, answers="both")
    with pytest.raises(ConfigError, match="gives no logprobs.*--answers generate"):
        model.load()


def test_it_has_no_such_model(address: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_PAUSE", 0.0)
    model = Api(address, str(models / "none"), images=None, max_new_tokens=LIMITS, retries=1)
    with pytest.raises(ConfigError, match=r"does not answer a question to model '.*none': HTTP 500: .*\(2 attempts\)"):
        model.load()


def test_a_whole_evaluation(address: str, models: Path, world: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"data": world, "max_new_tokens": 12, "max_answer_tokens": 4, "quiet": True}
    name = str(models / "llava")
    served = run.evaluate("amber", endpoint=address, model=name, out=tmp_path / "served", **shared)
    here = run.evaluate("amber", model=name, out=tmp_path / "here", batch_size=1, dtype="float32", **shared)
    assert served["exact"] == here["exact"] and served["coverage"] == here["coverage"]
    assert served["coverage"]["complete"]
    again = run.evaluate("amber", endpoint=address, model=name, out=tmp_path / "served", resume=True, **shared)
    assert again["exact"] == served["exact"]
