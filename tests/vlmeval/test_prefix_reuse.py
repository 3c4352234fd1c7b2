"""An image read once for all its questions: the same answers as one by one, and what it takes to get them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from local_items import FAMILIES, encoded, local, questions, ranked, said, shares

from vlmdata.errors import ConfigError
from vlmeval.cli import main
from vlmeval.models import prefix, prefix_check, prefix_flat
from vlmeval.models.local import Local
from vlmeval.models.prefix_batches import cut, shared
from vlmeval.opening import Who
from vlmeval.task import Item, Response
from vlmtrain import family as families

FOLDING = [name for name in FAMILIES if families.load(name).folds]
# A position that is off by one shows as 5e-6 in the least of these models.
NEAR = 3e-7
OTHERS = [name for name in FAMILIES if name not in FOLDING]


def captions(number: int) -> list[Item]:
    return [
        Item(f"c{place}", "Describe this picture.", (f"{place}.png",), "", ("g",), "text") for place in range(number)
    ]


def mixed() -> list[Item]:
    """Questions and captions on three images, one longer than its image, one image with one question, one without."""
    items = [*questions(9), *captions(3)]
    items.append(replace(items[0], id="long", prompt="Is it red? " * 40))
    items.append(replace(items[0], id="two", images=("0.png", "1.png")))
    items.append(replace(items[0], id="text", images=()))
    return items


class Counts:
    """Forwards of a model and what went through them, padding left out."""

    def __init__(self, model: Local) -> None:
        model.load()
        assert model.loaded is not None
        self.forwards: list[tuple[int, bool]] = []
        model.loaded.model.register_forward_pre_hook(self.hear, with_kwargs=True)

    def hear(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"]
        # Rows end to end have no padding.
        new = ids.numel() if "branches" in kwargs else int(kwargs["attention_mask"][:, -ids.shape[1] :].sum())
        self.forwards.append((new, kwargs.get("pixel_values") is not None))

    def tokens(self) -> int:
        return sum(tokens for tokens, _ in self.forwards)

    def towers(self) -> int:
        return sum(pixels for _, pixels in self.forwards)


def beginning(model: Local, items: Sequence[Item], image: str) -> int:
    """Tokens up to the last of an image, in a whole prompt."""
    ids = encoded(model, next(item for item in items if item.images == (image,)))["input_ids"][0].tolist()
    return len(ids) - ids[::-1].index(model.loaded.model.config.image_token_id)


def agree(ours: dict[Any, Response], plain: dict[Any, Response], items: Sequence[Item]) -> None:
    assert all(plain[item.id].error is None for item in items)
    assert {key: response.text for key, response in ours.items()} == {key: said.text for key, said in plain.items()}
    for item in items:
        if item.choices and plain[item.id].detail:
            assert shares(ours[item.id]) == pytest.approx(shares(plain[item.id]), abs=NEAR, rel=0)


@pytest.mark.parametrize("name", FOLDING)
def test_answers_are_those_of_the_whole_prompt(name: str, model_folder: Callable[[str], Path], pictures: Path) -> None:
    items = mixed()
    if families.load(name).max_images == 1:
        items = [item for item in items if len(item.images) < 2]
    for how in ("logits", "both"):
        model = local(model_folder(name), pictures, answers=how, verify_prefix=5)
        ours = said(model, items)
        agree(ours, said(local(model_folder(name), pictures, answers=how, share_prefix=False), items), items)
        assert model._sharing is not None and model._sharing.reason is None
        assert model._sharing.answers == 13, "all but the text and the two images that nobody shares"
        check = model.environment()["share_prefix"]["verified"]
        assert check["checked"] == 5 and not check["differing"]


@pytest.mark.parametrize("name", FOLDING)
def test_an_image_is_read_once(name: str, model_folder: Callable[[str], Path], pictures: Path) -> None:
    """Per image one prefix and its suffixes, questions and caption together; padding counts nowhere."""
    items = [*questions(14), *captions(3)]
    model = local(model_folder(name), pictures, answers="logits", max_new_tokens={"text": 1, "answer": 1})
    counts = Counts(model)
    said(model, items)
    sharing = model._sharing
    assert sharing is not None and counts.towers() == sharing.prefixes.made == 3
    begun = {image: beginning(model, items, image) for image in ("0.png", "1.png", "2.png")}
    assert sharing.prefixes.tokens == sum(begun.values())
    rests = sum(model._length(item) - begun[item.images[0]] for item in items)
    assert sharing.tokens == rests and counts.tokens() == sum(begun.values()) + rests


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_read_it_every_time(
    name: str, model_folder: Callable[[str], Path], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = questions(4)
    model = local(model_folder(name), pictures, answers="logits", verify_prefix=2)
    capsys.readouterr()
    found = said(model, items)
    reason = f"{name}: {families.load(name).folds_not}"
    assert capsys.readouterr().err.count(f"vlmeval: each question reads its image anew: {reason}\n") == 1
    agree(found, said(local(model_folder(name), pictures, answers="logits", share_prefix=False), items), items)
    known = model.environment()
    assert known["share_prefix"]["reason"] == reason and known["share_prefix"]["verified"]["checked"] == 0
    assert prefix_check.remarks(known) == [f"Nothing was answered a second time to compare shared images: {reason}."]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_positions_decide(
    name: str, model_folder: Callable[[str], Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison sees a prefix that is one position off; so does the check that users have."""
    plain, read = (
        said(local(model_folder(name), pictures, answers="logits", share_prefix=False), questions(6)),
        prefix.read,
    )

    def off(*given: Any) -> prefix.Prefix:
        found = read(*given)
        return replace(found, following=found.following + 1)

    monkeypatch.setattr(prefix, "read", off)
    model = local(model_folder(name), pictures, answers="logits", verify_prefix=6)
    ours = said(model, questions(6))
    apart = max(abs(a - b) for key in plain for a, b in zip(shares(ours[key]), shares(plain[key]), strict=True))
    assert apart > 10 * NEAR
    assert model.environment()["share_prefix"]["verified"]["largest_probability_difference"] == pytest.approx(
        apart, rel=0.01
    )


def test_what_the_config_asks_for_is_kept(base: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for share in (True, False):
        model = local(base, pictures, share_prefix=share)
        model.load()
        model.loaded.model.generation_config.repetition_penalty = 1.7
        found.append(said(model, questions(6)))
    assert found[0] == found[1]
    assert "its generation config has more than greedy decoding: repetition_penalty" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_end_to_end_and_with_a_copy_for_each_row_it_is_the_same(
    name: str, model_folder: Callable[[str], Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers of several tokens, some ended early, of rows on several images."""
    found, kept, items = {}, {}, mixed()
    for attention in ("sdpa", "eager"):
        model = local(model_folder(name), pictures, answers="both")
        model.load()
        text = model.loaded.model.config.get_text_config()
        if attention == "eager":
            text._attn_implementation = "eager"
        model.loaded.model.generation_config.eos_token_id = list(range(0, 200, 3))
        kept[attention] = []
        module = prefix_flat if attention == "sdpa" else prefix
        other = prefix if attention == "sdpa" else prefix_flat
        follow = module.follow
        watched = lambda *given, follow=follow, own=kept[attention]: (own.append(1), follow(*given))[1]  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(module, "follow", watched)
            patch.setattr(other, "follow", None)
            found[attention] = said(model, items)
        assert kept[attention]
    agree(found["sdpa"], found["eager"], items)


def test_answers_end_at_a_stop_token(base: Path, pictures: Path) -> None:
    items = questions(6)
    model, plain = local(base, pictures), local(base, pictures, share_prefix=False)
    for each in (model, plain):
        each.load()
        inputs = encoded(each, items[0])
        tokens = each.loaded.model.generate(**inputs, do_sample=False, max_new_tokens=3)[0][
            inputs["input_ids"].shape[1] :
        ]
        each.loaded.model.generation_config.eos_token_id = [int(tokens[1]), 1]
    ours = said(model, items)
    agree(ours, said(plain, items), items)
    assert ours[0].text == model.loaded.processor.tokenizer.decode(tokens[:2], skip_special_tokens=True).strip()


def test_rows_longer_than_the_window_are_read_whole(base: Path, pictures: Path) -> None:
    model = local(base, pictures, answers="logits")
    model.load()
    items = [*questions(6), replace(questions(1)[0], id="long", prompt="Is it red? " * 40)]
    model._shared().longest = model._length(items[-1])
    agree(said(model, items), said(local(base, pictures, answers="logits", share_prefix=False), items), items)
    assert model._sharing.answers == 6


def test_batches_have_an_image_together_and_are_the_same_anywhere() -> None:
    items = [*questions(14), *captions(3), *ranked(3), replace(questions(1)[0], id="else", images=("9.png",))]
    together = shared(items, lambda turns: "USER: <image>", "")
    assert together == {item.id for item in items if item.kind != "choice"} - {"else"}
    made = cut(items, 4, together, kind=lambda item: item.kind, length=lambda item: len(item.prompt))
    assert sorted(str(item.id) for batch in made for item in batch) == sorted(str(item.id) for item in items)
    order = [[item.images[0] for item in batch] for batch in made[:5]]
    assert order[0] == ["0.png"] * 4 and order[1] == ["0.png", "1.png", "1.png", "1.png"]
    assert [item.kind for item in made[4]] == ["text"] * 3, "captions come when the last image is still known"
    assert all(len({item.kind for item in batch}) == 1 for batch in made)
    assert not shared(items, lambda turns: "", ""), "what has no image, or cannot be written, is not shared"
    numbers = itertools.count()
    assert not shared(items, lambda turns: f"{next(numbers)} <image>", ""), "texts before the image differ"


def test_going_on_asks_what_is_left_and_reads_no_more(base: Path, pictures: Path) -> None:
    items = questions(14)
    whole = said(local(base, pictures, answers="both"), items)
    model = local(base, pictures, answers="both")
    rest = said(model, items, [item.id for item in items if item.id % 3])
    assert len(rest) == 5 and {key: response.text for key, response in rest.items()} == {
        key: whole[key].text for key in rest
    }
    assert model._sharing.prefixes.made == 1 and model._sharing.answers == 5


def test_one_bad_picture_fails_alone(base: Path, pictures: Path) -> None:
    bad = [replace(item, id=f"bad{item.id}", images=("gone.png",)) for item in questions(3)]
    marked = replace(questions(1)[0], id="mark", prompt="What is <image> here?")
    found = said(local(base, pictures), [*questions(6), *bad, marked])
    assert {key for key, response in found.items() if response.error} == {"bad0", "bad1", "bad2", "mark"}
    assert {key: found[key] for key in range(6)} == said(local(base, pictures), questions(6))


def test_memory_that_ran_out_lets_go_of_the_prefixes(
    base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = said(local(base, pictures), questions(9))
    model, follow = local(base, pictures, batch_size=8), prefix_flat.follow

    def small(given: Any, prefixes: Any, *rest: Any) -> Any:
        if len(prefixes) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return follow(given, prefixes, *rest)

    monkeypatch.setattr(prefix_flat, "follow", small)
    found = said(model, questions(9))
    assert {key: found[key].text for key in found} == {key: whole[key].text for key in whole}
    assert model.environment()["batch_size_fits"] == 2 and model._sharing.prefixes.made > 3


def test_differences_are_told_with_their_margin() -> None:
    check = prefix_check.Check({1, 2, 3})
    check.compare(Response(1, "yes"), [5, 6], Response(1, "yes", {"tokens": [5, 6], "apart": [1.0, 2.0]}))
    check.compare(Response(2, "yes it"), [5, 6], Response(2, "yes is", {"tokens": [5, 7], "apart": [1.0, 0.00125]}))
    halves = {"Yes": 0.25, "No": 0.2505}
    ours = Response(3, "Yes", {"probabilities": {"Yes": 0.2505, "No": 0.25}})
    check.compare(ours, [], Response(3, "No", {"probabilities": halves}))
    assert prefix_check.remarks({"share_prefix": {"items": 3, "verified": check.to_json()}}) == [
        "3 questions were answered a second time, with the image read anew instead of once for all its questions: 2 "
        "answers differ: item 2 'yes it' instead of 'yes is' (at token 2 the two likeliest are 0.0013 apart in "
        "logits); item 3 'Yes' instead of 'No' (the probabilities are 0.0005 apart). Off: --set share_prefix=no."
    ]
    assert prefix_check.remarks({"share_prefix": {"items": 3}}) == [] == prefix_check.remarks({})


def test_keys_are_checked_before_anything_is_loaded() -> None:
    who = Who(model="nowhere", sets={"share_prefix": "maybe"})
    with pytest.raises(ConfigError, match="--set share_prefix=maybe: expected yes or no"):
        who.check()
    with pytest.raises(ConfigError, match="leave out --set share_prefix=no"):
        Who(model="nowhere", sets={"share_prefix": "no", "verify_prefix": "3"}).check()
    with pytest.raises(ConfigError, match="--verify-prefix has an effect only for a model loaded here"):
        Who(model="m", endpoint="http://127.0.0.1:1", sets={"verify_prefix": "3"}).check()


@pytest.mark.parametrize("spelling", [["--verify-prefix", "6"], ["--set", "verify_prefix=6"]], ids=" ".join)
def test_a_command_tells_what_it_compared(spelling: list[str], world: Path, tiny: Path, tmp_path: Path) -> None:
    """A near-tie that bfloat16 decides otherwise would be a line of it, with its margin; here all agree."""
    given = ["amber", "--data", world, "--model", tiny, "--max-new-tokens", 4, "--out", tmp_path / "e", *spelling]
    run = CliRunner().invoke(main, [str(one) for one in given])
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    check = report["protocol"]["answers"]["share_prefix"]["verified"]
    assert check["checked"] == 6 and check["differing"] == 0 and check["differences"] == []
    said = prefix_check.remarks(report["protocol"]["answers"])
    assert said[0].startswith("6 questions were answered a second time") and said[0] in report["notes"]
    for name in ("report.md", "report.html"):
        assert said[0] in (tmp_path / "e" / name).read_text()
    assert said[0] in " ".join(run.output.split())


def test_processes_put_their_comparisons_together() -> None:
    one, two = prefix_check.Check({1}), prefix_check.Check({2})
    one.compare(Response(1, "a"), [5], Response(1, "a", {"tokens": [5], "apart": [1.0]}))
    two.compare(Response(2, "a"), [5], Response(2, "b", {"tokens": [6], "apart": [0.5]}))
    parts = [{"batch_size": 8, "share_prefix": {"items": 2, "verified": each.to_json()}} for each in (one, two)]
    both = prefix_check.joined(parts)
    check = both["share_prefix"]["verified"]
    assert (check["checked"], check["differing"], [said["id"] for said in check["differences"]]) == (2, 1, [2])
    assert both["batch_size"] == 8 and both["share_prefix"]["items"] == 2
    assert prefix_check.joined(parts[:1]) == parts[0] and prefix_check.joined([{"a": 1}, {"a": 2}]) == {"a": 1}
    (said,) = prefix_check.remarks(both)
    assert "1 answer differs: item 2 'a' instead of 'b' (at token 1 the two likeliest are 0.5 apart in logits)" in said
