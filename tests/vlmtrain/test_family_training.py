"""Training of every family on real TRL trainers, each on a tiny random model of its architecture."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import tiny_models
import torch
from run_files import losses
from safetensors.torch import load_file

from vlmtrain import dpo, sft
from vlmtrain import family as families
from vlmtrain.chat import render
from vlmtrain.collate import Collator
from vlmtrain.family import Family
from vlmtrain.merge import merge
from vlmtrain.model import Loaded, load
from vlmtrain.parts import layers_of
from vlmtrain.runs import RunResult
from vlmtrain.saving import save
from vlmtrain.training import begin, run

QUICK: dict[str, Any] = {"batch_size": 3, "learning_rate": 1e-2, "logging_steps": 1, "seed": 1}
MAKE = {"sft": sft.make_trainer, "dpo": dpo.make_trainer}


def all_parts(family: Family) -> str:
    return ",".join(part for part in families.PARTS if part in family.targets) + ":attention,mlp"


def asks(family: Family) -> list[tuple[list[Any], list[bytes]]]:
    """What a user says and shows: three images, none, one, or as many as the architecture takes."""
    three = min(3, family.max_images or 3)
    shown = [rows.picture("red"), rows.picture("blue", (90, 31)), rows.picture("green", (20, 60))][:three]
    one = rows.user(rows.PLACE, "What colour?")
    found = [([rows.user(*[rows.PLACE] * three, "Which colours?")], shown), ([rows.user("Say yes.")], [])]
    return [*found, *(([one], [rows.picture(colour, (30 + 40 * i, 50))]) for i, colour in enumerate(rows.COLOURS))]


def write(folder: Path, family: Family, method: str) -> Path:
    made = []
    for number, (ask, shown) in enumerate(asks(family)):
        if method == "sft":
            made.append(rows.sample(f"r{number}", [*ask, rows.assistant(f"It is number {number}.")], shown))
        else:
            made.append(rows.preference(f"r{number}", ask, f"It is number {number}.", "No", shown))
    return rows.write(folder / method, made)


@dataclass
class Trained:
    """A finished SFT run of all parts, and what its model said at the end."""

    base: Path
    out: Path
    batch: dict[str, Any]
    logits: torch.Tensor
    each: list[dict[str, Any]]
    alone: torch.Tensor


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    model.eval()
    given = {key: value for key, value in batch.items() if key not in ("labels", "sharing")}
    with torch.no_grad():
        found: torch.Tensor = model(**given).logits
    return found[batch["attention_mask"].bool()]


@pytest.fixture(scope="module")
def trained(loaded: Loaded, model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, base = tmp_path_factory.mktemp("trained"), model_folder(loaded.family.name)
    trainer, job = started("sft", loaded.family, base, folder, max_steps=3, parts=all_parts(loaded.family))
    run(trainer, job)
    batch = trainer.data_collator(list(trainer.train_dataset))
    each = [trainer.data_collator([row]) for row in trainer.train_dataset]
    alone = each_alone(trainer.model, each)
    return Trained(base, folder / "run", batch, logits(trainer.model, batch), each, alone)


def each_alone(model: Any, batches: list[dict[str, Any]]) -> torch.Tensor:
    """Row by row: what plain transformers makes of a batch is not that for every family (``test_shims``)."""
    return torch.cat([logits(model, batch) for batch in batches])


def started(method: str, family: Family, base: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    """A trainer that is ready, and its job."""
    data = folder / method if (folder / method).exists() else write(folder, family, method)
    given = {"model": str(base), **QUICK, **options}
    job = begin(method, data=[data], out=folder / "run", overwrite=True, progress=False, options=given)
    assert not isinstance(job, RunResult)
    return MAKE[method](job), job


def test_sft_trains_every_part(loaded: Loaded, trained: Trained) -> None:
    """All adapters have grown but those of layers the architecture itself never uses."""
    assert len(losses(trained.out)) == 3 and all(map(math.isfinite, losses(trained.out)))
    adapter = load_file(trained.out / "adapter_model.safetensors")
    prefix, suffix = "base_model.model.", ".lora_B.weight"
    sides = {key.removeprefix(prefix).removesuffix(suffix): value for key, value in adapter.items() if "lora_B" in key}
    grown = {name for name, value in sides.items() if value.abs().max() > 0}
    net = copy.deepcopy(loaded.model).train().requires_grad_(True)
    net(**trained.batch).loss.backward()
    weights = {name.removesuffix(".weight"): weight.grad for name, weight in net.named_parameters()}
    used = {name for name, grad in weights.items() if grad is not None and grad.abs().max() > 0}
    assert grown == sides.keys() & used
    for part in set(families.PARTS) & loaded.family.targets.keys():
        regex = re.compile(loaded.family.target_regex((part,), families.KINDS))
        assert any(regex.fullmatch(name) for name in grown), part
    # What is never used are the layers behind the one whose output is taken.
    idle = {re.sub(r"\.\d+\..*", "", name) for name in sides.keys() - used}
    assert len(idle) <= 1 and len(sides.keys() - used) <= len(sides) / 4


def test_the_adapter_comes_back(loaded: Loaded, trained: Trained) -> None:
    """With this package, and with plain peft."""
    import transformers
    from peft import PeftModel

    back = load(str(trained.base), trained.out, device="cpu")
    torch.testing.assert_close(logits(back.model, trained.batch), trained.logits, rtol=1e-5, atol=1e-5)
    plain = getattr(transformers, loaded.family.auto_class).from_pretrained(trained.base)
    plain = PeftModel.from_pretrained(plain, trained.out)
    torch.testing.assert_close(each_alone(plain, trained.each), trained.alone, rtol=1e-5, atol=1e-5)
    without = logits(loaded.model, trained.batch)
    assert (without - trained.logits).abs().max() > 1e-2, "the adapter does nothing"
    batch = Collator(back.processor, back.family)
    assert batch.processor.chat_template == loaded.processor.chat_template


def test_merged_is_the_adapter(
    loaded: Loaded, trained: Trained, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """In plain transformers."""
    import transformers

    out = merge(trained.out, tmp_path / "merged", model=str(trained.base))
    plain = getattr(transformers, loaded.family.auto_class).from_pretrained(out)
    difference = (each_alone(plain, trained.each) - trained.alone).abs().max().item()
    record_property("matrix", f"{difference:.0e}")
    assert difference < 1e-4
    again = load(str(out), device="cpu")
    assert again.processor.chat_template == loaded.processor.chat_template
    assert again.family.name == loaded.family.name


def test_dpo_starts_at_ln_2(loaded: Loaded, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """All parts are trained, the vision tower too."""
    options = {"max_steps": 2, "parts": all_parts(loaded.family)}
    trainer, job = started("dpo", loaded.family, model_folder(loaded.family.name), tmp_path, **options)
    run(trainer, job)
    first, second = losses(job.folder.path)
    assert first == pytest.approx(math.log(2), abs=1e-5)
    assert math.isfinite(second) and second != first
    grown = {key for key, value in load_file(job.folder.path / "adapter_model.safetensors").items() if value.any()}
    assert any("lora_B" in key and "language_model" not in key and "text_model" not in key for key in grown)


def gradients(trainer: Any, checkpointing: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of all rows at adapters that are not zero."""
    generator = torch.Generator().manual_seed(5)
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad and "lora_B" in name:
            weight.data.normal_(0, 0.05, generator=generator)
    if checkpointing:
        # As the trainer does when it begins to train.
        trainer.model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    assert any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules()) is checkpointing
    trainer.model.train()
    trainer.model.zero_grad()
    # OPT drops out by a function, which no setting of a trainer turns off.
    torch.manual_seed(3)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()
    grads = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is not None}
    return loss.item(), grads


def same(found: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(other[0], rel=1e-5)
    assert found[1].keys() == other[1].keys()
    for name, grad in found[1].items():
        torch.testing.assert_close(grad, other[1][name], rtol=1e-3, atol=1e-5 * max(1.0, grad.abs().max().item()))


def test_gradient_checkpointing_changes_nothing(
    loaded: Loaded, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """And a tower that is trained gets its gradients; all layers are computed twice but a last read in part."""
    family = loaded.family
    options = {"gradient_checkpointing": True, "parts": all_parts(family)}
    trainer, _ = started("sft", family, model_folder(family.name), tmp_path, **options)
    off = gradients(trainer, False)
    seen: Counter[str] = Counter()
    for name, layer in layers_of(trainer.net, family).items():
        linear = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
        linear.register_forward_pre_hook(lambda module, args, name=name: seen.update([name]))
    on = gradients(trainer, True)
    assert [*seen.values()] == [*[2] * (len(seen) - 1), 1 if family.folds else 2]
    same(on, off)
    in_tower = [n for n in on[1] if n.removeprefix("base_model.model.").startswith(family.towers)]
    assert sum(on[1][name].abs().max() > 0 for name in in_tower) > len(in_tower) / 2


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_shared_features_change_nothing(
    loaded: Loaded, method: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    family, found = loaded.family, {}
    trainer, _ = started(method, family, model_folder(family.name), tmp_path, gradient_checkpointing=True)
    for shared in (False, True):
        trainer.share_features = shared
        batch = trainer.with_features(trainer.data_collator(list(trainer.train_dataset)))
        assert ("pixel_values" not in batch) is shared
        found[shared] = gradients(trainer, checkpointing=shared)
    same(found[True], found[False])


def test_a_missing_template_is_the_familys_and_kept(loaded: Loaded, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    family, base = loaded.family, tiny_models.make(loaded.family.name, tmp_path / "base", chat_template=False)
    bare = load(str(base), device="cpu")
    regex = family.target_regex(("language",), ("attention",))
    save(get_peft_model(bare.model, LoraConfig(target_modules=regex)), bare.processor, tmp_path / "run", bare.base)
    kept = load(str(base), tmp_path / "run", device="cpu").processor
    assert kept.chat_template == family.chat_template
    ask, answer = rows.user("What?"), rows.assistant("This.")
    system = {"role": "system", "content": [rows.text("Be brief.")]}
    talk = render(kept, [system, ask, answer, ask, rows.assistant("That.")])
    assert re.search(r"(?s)Be brief\..*What\?.*This\..*What\?.*That\.", talk.text)
    assert [talk.text[start:stop].strip()[:5] for start, stop in talk.answers] == ["This.", "That."]
