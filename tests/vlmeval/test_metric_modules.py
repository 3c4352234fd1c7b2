from __future__ import annotations

import subprocess
import sys

import pytest

from vlmdata.errors import MissingError
from vlmeval import metrics

CODE = """
import socket
def refuse(*arguments, **options):
    raise OSError("no network in this test")
socket.socket.connect = refuse
import evaluate
from vlmeval.metrics import path
yesno = evaluate.load(path("amber_discriminative"))
found = yesno.compute(predictions=["No", "Yes", "No."], references=["no", "no", "no"])
assert (found["accuracy"], found["precision"], found["recall"], found["f1"]) == (33.3, 99.9, 33.3, 49.9), found
found = yesno.compute(predictions=["No", "Yes", "No."], references=["no", "no", "no"], read_answers="word")
assert found["accuracy"] == 66.6 and found["no_answer_rate"] == 0 and round(found["yes_rate"]) == 33, found
captions = evaluate.load(path("amber_generative"))
found = captions.compute(predictions=["a cat and dogs", "nothing"], truth=[["cat"], ["cat"]], hallu=[["dog"], []],
                         association={"cat": [], "dog": []}, safe=["light"])
assert found == {"chair": 50.0, "cover": 50.0, "hal": 50.0, "cog": 99.9, "words": 2.5}, found
pope = evaluate.load(path("pope"))
found = pope.compute(predictions=["Yes", "no", "perhaps", "No."], references=["yes", "no", "no", "yes"])
assert found == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5, "no_answer_ratio": 0}
found = pope.compute(predictions=["Yes", "perhaps"], references=["yes", "no"], read_answers="word")
assert (found["accuracy"], found["precision"], found["no_answer_ratio"]) == (0.5, 1, 0.5), found
labels = evaluate.load(path("classification"))
found = labels.compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2])
assert found["accuracy"] == found["f1_micro"] == 0.75 and round(found["f1_macro"], 6) == 0.777778, found
labels.add_batch(predictions=[1], references=[1])
assert labels.compute()["accuracy"] == 1
captions = evaluate.load(path("caption"))
found = captions.compute(predictions=["a red square", "cat"], references=[["a red square", "a square"], ["the cat"]])
assert found["bleu1"] < 1 and found["rouge_l"] > 0.8 and found["cider"] > 100 and found["loops"] == 0, found
assert captions.compute(predictions=["a red square"], references=["a red square"])["rouge_l"] == 1
plates = evaluate.load(path("ocr"))
found = plates.compute(predictions=['Here: {"a": "V8", "b": "1"}', "Hello"], references=['{"a": "U8"}', "Hello"])
assert (found["fields"], found["json"], found["json_only"], found["exact"]) == (0, 1, 0, 0.5), found
assert found["cer"] == 1 / 7 and found["wer"] == 0.5 and found["alike"] == 1 and found["field_f1"] == 0, found
assert "fields" not in plates.compute(predictions=["a"], references=["a"])
answers = evaluate.load(path("vqa"))
found = answers.compute(predictions=["red", "98"], references=["Red.", "100"])
assert (found["accuracy"], found["relaxed"], found["exact"]) == (0.5, 0.5, 0), found
found = answers.compute(predictions=["it is 98 cm"], references=[["100", "7"]], read_numbers=True)
assert found["relaxed"] == 1, found
assert answers.compute(predictions=["98"], references=["100"], tolerance=0.01)["relaxed"] == 0
pairs = evaluate.load(path("preference"))
found = pairs.compute(chosen=[-1, -2, -3], rejected=[-2, -2, -1])
assert found == {"accuracy": 1 / 3, "ties": 1 / 3, "margin": -1 / 3}, found
found = pairs.compute(chosen=[-1, -2], rejected=[-2, -3], chosen_tokens=[1, 1], rejected_tokens=[4, 2])
assert found["accuracy"] == 1 and found["accuracy_per_token"] == 0 and found["margin_per_token"] == -0.5, found
print("all right")
"""


def test_modules_load_and_compute_without_network(tmp_path) -> None:
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout.strip() == "all right", run.stderr


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(
        MissingError, match="valid: amber_discriminative, amber_generative, caption, classification, ocr"
    ):
        metrics.path("bleu")
