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
labels = evaluate.load(path("classification"))
found = labels.compute(predictions=[0, 1, 2, 2], references=[0, 1, 1, 2])
assert found["accuracy"] == found["f1_micro"] == 0.75 and round(found["f1_macro"], 6) == 0.777778, found
labels.add_batch(predictions=[1], references=[1])
assert labels.compute()["accuracy"] == 1
print("all right")
"""


def test_modules_load_and_compute_without_network(tmp_path) -> None:
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout.strip() == "all right", run.stderr


def test_an_unknown_module_is_named() -> None:
    with pytest.raises(MissingError, match="valid: amber_discriminative, amber_generative, classification"):
        metrics.path("bleu")
