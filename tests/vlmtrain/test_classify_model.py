"""What a classifier is made of: its head, what is trained, the loss, the rows it can use, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import colour_rows
import labelled_rows
import pytest
import tiny_models
import torch
from labelled_rows import CLASSES, QUICK
from run_files import same, weights
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification

from vlmdata.errors import ConfigError, DataError, MissingError
from vlmtrain import classify
from vlmtrain.model import load

data = labelled_rows.shards("train", 8)
held = labelled_rows.shards("held", 3, seed=9)


def job_of(data: Path, out: Path, **options: Any) -> Any:
    return classify.begin(data=[data], out=out, progress=False, options=options)


def test_a_new_head_depends_on_the_seed_alone(vit: Path, data: Path, tmp_path: Path) -> None:
    heads = []
    for number, seed in enumerate((3, 3, 4)):
        torch.rand(number)
        job = job_of(data, tmp_path / str(number), model=str(vit), seed=seed)
        assert job.loaded.new_head
        heads.append(job.loaded.model.classifier.weight.detach().clone())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert heads[0].shape == (6, 32) and heads[0].std().item() == pytest.approx(0.02, rel=0.2)


def test_a_head_for_the_same_classes_is_kept_and_one_for_others_is_not(data: Path, tmp_path: Path) -> None:
    for labels, new in ((CLASSES, False), (tuple(reversed(CLASSES)), True), (CLASSES[:4], True)):
        folder = tiny_models.make("vit", tmp_path / f"{len(labels)}{new}", labels=labels)
        before = load_file(folder / "model.safetensors")["classifier.weight"]
        job = job_of(data, tmp_path / f"run{len(labels)}{new}", model=str(folder))
        kept = job.loaded.model.classifier.weight
        assert job.loaded.new_head is new and (kept.shape == before.shape and torch.equal(kept, before)) is not new
        assert classify.classifiers.classes(job.loaded.model.config) == CLASSES


def test_a_base_without_a_head_gets_one(data: Path, held: Path, tmp_path: Path) -> None:
    """As google/vit-base-patch16-224-in21k: the weights of a ViTModel, pooler and all."""
    import transformers as tf

    model, processor = tiny_models.vit.make()
    bare = tmp_path / "in21k"
    tf.ViTModel(model.config).save_pretrained(bare)
    processor.save_pretrained(bare)
    with pytest.raises(ConfigError, match="no head that tells classes apart"):
        load(str(bare), device="cpu")
    out = classify.train(data, tmp_path / "run", model=str(bare), max_steps=2, **QUICK).out
    assert load(str(bare), out, device="cpu").model.config.num_labels == 6


def test_the_names_of_older_recipes_mean_todays_modules(vit: Path, data: Path, tmp_path: Path) -> None:
    runs = [
        classify.train(data, tmp_path / names[0], model=str(vit), max_steps=2, target_modules=names, **QUICK).out
        for names in (("query", "value"), ("q_proj", "v_proj"))
    ]
    assert same(*runs)
    assert {key.split(".")[-3] for key in weights(runs[0]) if "lora_A" in key} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="no module named 'quary'; linear layers: .*q_proj"):
        job_of(data, tmp_path / "none", model=str(vit), target_modules=["quary"])


def test_the_head_alone(vit: Path, data: Path, held: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    result = classify.train(
        data, tmp_path / "run", model=str(vit), max_steps=4, head_only=True, **{**QUICK, "lora_dropout": None}
    )
    assert weights(result.out).keys() == {f"base_model.model.classifier.{part}" for part in ("weight", "bias")}
    assert result.metrics["trainable_parameters"] == 6 * 32 + 6
    ours = load(str(vit), result.out, device="cpu")
    base = AutoModelForImageClassification.from_pretrained(
        vit, config=AutoConfig.from_pretrained(result.out), ignore_mismatched_sizes=True
    )
    pixels, _ = labelled_rows.batch(ours.processor, held)
    plain = labelled_rows.logits(PeftModel.from_pretrained(base, result.out), pixels)
    assert torch.equal(labelled_rows.logits(ours.model, pixels), plain) and plain.std() > 0


def test_everything_is_trained(vit: Path, data: Path, held: Path, tmp_path: Path) -> None:
    options = {**QUICK, "lora_dropout": None, "learning_rate": 1e-3, "parts": "vision"}
    result = classify.train(data, tmp_path / "run", model=str(vit), max_steps=4, tuner="full", **options)
    plain = AutoModelForImageClassification.from_pretrained(result.out)
    assert [plain.config.id2label[i] for i in range(6)] == list(CLASSES)
    before = load_file(vit / "model.safetensors")
    moved = {
        key for key, value in load_file(result.out / "model.safetensors").items() if not torch.equal(value, before[key])
    }
    assert moved >= {key for key in before if key.endswith("weight")}
    again = load(str(result.out), device="cpu")
    pixels, _ = labelled_rows.batch(again.processor, held)
    assert torch.equal(labelled_rows.logits(plain, pixels), labelled_rows.logits(again.model, pixels))


@pytest.mark.parametrize(("family", "kind"), labelled_rows.kinds())
def test_every_architecture(family: str, kind: str, data: Path, held: Path, tmp_path: Path) -> None:
    """Every linear layer learns, but the head, which is trained in full, and what makes its input of the tower's."""
    base = tiny_models.make(family, tmp_path / kind, kind=kind)
    options = {**QUICK, "parts": "vision", "eval_data": [held]}
    if family != "convnext":
        options["gradient_checkpointing"] = True
    result = classify.train(data, tmp_path / "run", model=str(base), max_steps=2, **options)
    state = weights(result.out)
    tuned = {key.removeprefix("base_model.model.").partition(".lora_A")[0] for key in state if "lora_A" in key}
    named = load(str(base), device="cpu").model.named_modules()
    linear = {name for name, module in named if isinstance(module, torch.nn.Linear)}
    others = ("classifier", "vision_model.head.", "continuous_position_bias_mlp", "downsample.reduction")
    assert linear - tuned == {name for name in linear if any(other in name for other in others)}
    assert all(value.abs().max() > 0 for key, value in state.items() if "lora_B" in key), "a layer got no gradient"
    loaded = load(str(base), result.out, device="cpu")
    pixels, labels = labelled_rows.batch(loaded.processor, held)
    right = (labelled_rows.logits(loaded.model, pixels).argmax(-1) == labels).float().mean().item()
    assert right == pytest.approx(result.metrics["eval"]["eval_accuracy"])


def test_balanced_weights_and_smoothing_are_what_they_say(vit: Path, held: Path, tmp_path: Path) -> None:
    """Against the definitions, on one batch in training and in evaluation."""
    uneven = labelled_rows.pictures(tmp_path / "raw", 1, CLASSES)
    for number in range(5):
        (uneven / "red" / f"more{number}.png").write_bytes((uneven / "red" / "0.png").read_bytes() + bytes(number + 1))
    from vlmdata.convert import convert

    convert("imagefolder", uneven, tmp_path / "data", engine="serial")
    job = job_of(tmp_path / "data", tmp_path / "run", model=str(vit), class_weights="balanced", label_smoothing=0.1)
    trainer = classify.make_trainer(job)
    torch.manual_seed(0)
    scores, labels = torch.randn(11, 6), torch.tensor(job.rows["label"])
    assert len(labels) == 11
    weight = torch.tensor([11 / 6 / (6 if name == "red" else 1) for name in CLASSES])
    assert weight[labels].mean().item() == pytest.approx(1)
    log = scores.log_softmax(-1)
    target = torch.nn.functional.one_hot(labels, 6) * 0.9 + 0.1 / 6
    expected = -(target * log * weight).sum(-1).mean()
    trainer.model.train()
    assert trainer.compute_loss_func({"logits": scores}, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    halves = [trainer.compute_loss_func({"logits": scores[p]}, labels[p], 11) for p in (slice(0, 4), slice(4, 11))]
    assert sum(half.item() for half in halves) == pytest.approx(expected.item(), rel=1e-5)
    trainer.model.eval()
    plain = torch.nn.functional.cross_entropy(scores, labels)
    assert trainer.compute_loss_func({"logits": scores}, labels).item() == pytest.approx(plain.item(), rel=1e-6)


def test_16_bit_bases_train_in_32_bits(vit: Path, data: Path, held: Path, tmp_path: Path) -> None:
    options = {**QUICK, "model": str(vit), "dtype": "bfloat16", "eval_data": [held]}
    result = classify.train(data, tmp_path / "run", max_steps=3, **options)
    assert {value.dtype for value in weights(result.out).values()} == {torch.float32}
    assert result.metrics["eval"]["eval_loss"] < 3
    with pytest.raises(ConfigError, match="float16 training needs a GPU"):
        classify.train(data, tmp_path / "half", model=str(vit), dtype="float16", max_steps=1, **QUICK)


def test_rows_that_cannot_be_used_are_counted(vit: Path, data: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vlmdata.manifest import Manifest

    folder = labelled_rows.write(tmp_path / "data", 3)
    file = next(folder.glob("*.parquet"))
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[0]["label"] = None
    rows[1]["label"] = -1
    rows[2] |= {name: rows[2][name] * 2 for name in ("images", "image_size", "image_sha256")}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    assert Manifest.read(folder).records == 18
    result = classify.train(folder, tmp_path / "run", model=str(vit), max_steps=1, **QUICK)
    counts = result.metrics["rows"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (18, 15, {"image_count": 1, "no_label": 2})
    dropped = json.loads((result.out / "dropped.json").read_text())
    assert [entry["reason"] for entry in dropped] == ["no_label", "no_label", "image_count"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_image_tokens": 4}, "max_image_tokens is for models that read text"),
        ({"share_features": False}, "share_features is for models that read text"),
        ({"quantize": "8bit"}, "image classifiers are trained in 32 or 16 bits"),
        ({"streaming": True}, "streaming is for models that read text"),
        ({"head_only": True, "lora_r": 4}, "leave out lora_r"),
        ({"augment": "none", "crop_scale": 0.5}, "augment is none"),
        ({"parts": "language:attention"}, "no part named 'language' in this model; valid: vision"),
        ({"augment": "mixup"}, "augment is 'mixup'; valid: crop_flip, none"),
        ({"beta": 0.1}, "unknown key 'beta'"),
        ({"model": "vlmtrain:tiny"}, "vision-language model that answers in words .*train it with vlmtrain sft or dpo"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], match: str, vit: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        job_of(data, tmp_path / "run", **{"model": str(vit), **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_data_without_labels_or_with_others_are_refused(vit: Path, data: Path, held: Path, tmp_path: Path) -> None:
    plain = colour_rows.write(tmp_path / "plain", colour_rows.colours(4))
    with pytest.raises(DataError, match="plain has no labels: expected data of food101 or imagefolder"):
        job_of(plain, tmp_path / "run", model=str(vit))
    two = labelled_rows.write(tmp_path / "two", 2, CLASSES[:2])
    with pytest.raises(DataError, match="--eval-data has 2 classes, --data has 6; not in both: green, grey, red"):
        classify.train(data, tmp_path / "run", eval_data=[two], model=str(vit), **QUICK)
    with pytest.raises(DataError, match="two has other classes than .*train"):
        classify.train([data, two], tmp_path / "run", model=str(vit), **QUICK)
    with pytest.raises(MissingError):
        job_of(tmp_path / "nothing", tmp_path / "run", model=str(vit))


def test_methods_that_read_text_refuse_a_classifier(vit: Path, data: Path, tmp_path: Path) -> None:
    from vlmtrain import sft

    with pytest.raises(ConfigError, match="vit is an image classifier .*: train it with vlmtrain classify"):
        sft.train(data, tmp_path / "run", model=str(vit), progress=False)


def test_an_adapter_of_2024_is_applied(tmp_path: Path) -> None:
    """Its modules are query and value, below encoder.layer; plain peft finds none of them (upstream bug)."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import save_file

    base = tiny_models.make("vit", tmp_path / "vit", labels=("a", "b", "c"))
    targets = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], "init_lora_weights": False}
    made = get_peft_model(AutoModelForImageClassification.from_pretrained(base), LoraConfig(r=4, **targets))
    pixels = torch.randn(2, 3, 28, 28)
    expected = labelled_rows.logits(made, pixels)
    made.save_pretrained(tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    names = {"vit.layers": "vit.encoder.layer", "q_proj": "attention.query", "v_proj": "attention.value"}
    state = {}
    for key, value in load_file(tmp_path / "new" / "adapter_model.safetensors").items():
        for today, before in names.items():
            key = key.replace(today, before)
        state[key] = value
    save_file(state, old / "adapter_model.safetensors")
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    (old / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["query", "value"]}))
    ours = load(str(base), old, device="cpu")
    torch.testing.assert_close(labelled_rows.logits(ours.model, pixels), expected, atol=1e-6, rtol=0)
    assert classify.classifiers.classes(ours.model.config) == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(ValueError, match="targeted|target modules"):
        PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(base), old)


def test_plain_peft_still_does_not_know_query_and_value(vit: Path) -> None:
    """When it does, the family's renames of targets can go."""
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(
            AutoModelForImageClassification.from_pretrained(vit), LoraConfig(target_modules=["query", "value"])
        )


def test_plain_trainer_still_adds_up_the_losses_of_beit(data: Path, tmp_path: Path) -> None:
    """upstream bug: four batches a step give it four times the loss and gradient; here a step is a mean."""
    import transformers as tf

    base = tiny_models.make("vit", tmp_path / "beit", kind="beit")
    options = {**QUICK, "model": str(base), "max_steps": 1, "lora_dropout": 0.0, "augment": "none"}
    ours = []
    for size, accumulate in ((48, 1), (12, 4)):
        sizes = {**options, "batch_size": size, "accumulate": accumulate}
        ours.append(classify.train(data, tmp_path / str(size), **sizes).metrics["final"])
    assert ours[0]["loss"] == pytest.approx(ours[1]["loss"], rel=1e-4)
    assert ours[0]["grad_norm"] == pytest.approx(ours[1]["grad_norm"], rel=1e-2)
    pixels, labels = labelled_rows.batch(load(str(base), device="cpu").processor, data)
    rows = [{"pixel_values": pixels[i], "labels": labels[i] % 2} for i in range(48)]
    plain = []
    for size, accumulate in ((48, 1), (12, 4)):
        trainer = tf.Trainer(
            AutoModelForImageClassification.from_pretrained(base),
            tf.TrainingArguments(
                str(tmp_path / "plain"),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulate,
                max_steps=1,
                save_strategy="no",
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=rows,
        )
        plain.append(trainer.train().training_loss)
    assert plain[1] == pytest.approx(4 * plain[0], rel=0.02)


def test_convolutions_cannot_be_recomputed(data: Path, tmp_path: Path) -> None:
    base = tiny_models.make("convnext", tmp_path / "convnext")
    job = job_of(data, tmp_path / "run", model=str(base), parts="vision:mlp", gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="convnext cannot recompute activations"):
        classify.make_trainer(job)
    with pytest.raises(ConfigError, match="has no attention layers; it has: mlp"):
        job_of(data, tmp_path / "other", model=str(base))


def test_the_recipe_trains_what_the_guide_trains() -> None:
    """The count PEFT's guide prints for ViT-base with 101 classes: LoRA on query and value, and the head."""
    from peft import get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    from vlmtrain import family as families
    from vlmtrain.config import resolve
    from vlmtrain.model import Loaded
    from vlmtrain.tuning import adapter_config

    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig(num_labels=101))
    loaded = Loaded(model, None, families.load("vit"), "vit-base", "")
    config = resolve("classify", {}, recipe="vit-food101")
    tuned = get_peft_model(model, adapter_config(config, loaded))
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == 667_493
    assert (config.training.batch_size * config.training.accumulate, config.training.epochs) == (512, 5)
    assert config.training.learning_rate == 5e-3 and config.lora.lora_dropout == 0.1
