"""A model with a head in the form of Hugging Face's classes for sequences and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.family import Pretrained
from ..checkpoints.native import CONFIG, WEIGHTS
from ..checkpoints.source import open_source
from ..errors import UserError
from ..files import read_json, read_safetensors, replaced_folder, write_atomic, write_json
from ..heads.base import Head
from ..heads.regress import Regress
from ..heads.tag import Tag
from .model import OWN, LabelledModel
from .run import Modality

TOKENS = {
    "bert": "BertForTokenClassification", "roberta": "RobertaForTokenClassification",
    "xlm-roberta": "XLMRobertaForTokenClassification", "camembert": "CamembertForTokenClassification",
    "distilbert": "DistilBertForTokenClassification", "esm": "EsmForTokenClassification",
}  # fmt: skip
"""Classes with one linear layer on every token, by `model_type`."""
SEQUENCES = {"bert": "BertForSequenceClassification"}
"""Classes with one linear layer on what the pooler gives."""
PROBLEMS = {"classify": "single_label_classification", "multilabel": "multi_label_classification",
            "regress": "regression"}  # fmt: skip


def classifier(head: Head) -> tuple[Tensor, Tensor]:
    """Weight `[width, dim]` and bias `[width]` of a head that is one linear layer; of numbers in their own unit.

    Raises:
        UserError: it is more than that.
    """
    head = head.each if isinstance(head, Tag) else head
    if head.kind not in PROBLEMS or (isinstance(head, Regress) and head.options.distribution != "point"):
        what = head.kind if head.kind not in PROBLEMS else f"{head.kind} with distribution {head.options.distribution}"
        raise UserError(
            f"A head of kind {what} has no counterpart in Hugging Face, whose classes end in one linear layer; keep "
            "the run in triune's format."
        )
    linear: Any = head.linear
    weight, bias = linear.weight.detach().float(), linear.bias.detach().float()
    if isinstance(head, Regress):
        std, mean = (torch.tensor(head.spec.training[name], dtype=torch.float32) for name in ("std", "mean"))
        return weight * std[:, None], bias * std + mean
    return weight.clone(), bias.clone()


def check_class(model: LabelledModel, model_type: str) -> str:
    """The class of Hugging Face that has this model. Raises UserError where there is none, saying what differs."""
    known = TOKENS if model.head.per_token else SEQUENCES
    if model_type not in known:
        kind = "token" if model.head.per_token else "sequence"
        raise UserError(
            f"Hugging Face's {kind} classifier of {model_type} has another head than one linear layer on the vectors "
            f"of the model (those of {', '.join(known)} have that); keep the run in triune's format."
        )
    if not model.head.per_token and model.config.pool != OWN:
        raise UserError(
            f"{known[model_type]} reads its own pooler, but this model was trained with pool {model.config.pool}; "
            "train with --model.pool own."
        )
    return known[model_type]


def write_head(modality: Modality, room: Any, source: Path, folder: Path) -> list[str]:
    """Writes the model in the folder `source` for transformers; returns what is to be said.

    Args:
        modality: of the model.
        room: the task's module of checkpoints.
        source: a model folder of ours.
        folder: where to.

    Raises:
        UserError: Hugging Face has no class for it; the sentence says what differs.
    """
    model: Any = modality.model.from_pretrained(source).eval()
    classifier(model.head)
    trunk = modality.whole_trunk(model) if modality.whole_trunk else None
    if trunk is None:
        raise UserError(f"Heads of {modality.task} are not written for Hugging Face; keep the run in triune's format.")
    if model.config.reads.get("profile"):
        raise UserError("This model reads profiles, which no model of Hugging Face does; keep it in triune's format.")
    companion = getattr(modality.reader(model, source), "tokenizer", None)
    with replaced_folder(folder) as new:
        room.export(Pretrained(trunk, open_source(str(source)), None, companion), new / "x", "hf")
        name = add_head(model, new / "x")
        for file in (new / "x").iterdir():
            file.rename(new / file.name)
        (new / "x").rmdir()
    names = list((model.head.each if isinstance(model.head, Tag) else model.head).spec.names)
    said = [f"{folder} holds a {name} of {len(names):,} {'labels' if len(names) > 1 else 'label'}."]
    if model.head.spec.calibration:
        said.append("The calibration stays behind: its logits are those of the model as it was trained.")
    return said


def add_head(model: LabelledModel, folder: Path) -> str:
    """Adds the head to a folder that holds the trunk in Hugging Face's format; returns the class that reads both."""
    config = read_json(folder / CONFIG)
    name = check_class(model, str(config.get("model_type")))
    weight, bias = classifier(model.head)
    from safetensors.torch import save

    tensors = read_safetensors(folder / WEIGHTS)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(("cls.", "lm_head."))}
    tensors |= {"classifier.weight": weight, "classifier.bias": bias}
    write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    inner = model.head.each if isinstance(model.head, Tag) else model.head
    names = list(inner.spec.names)
    labels = {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    problem = {} if model.head.per_token else {"problem_type": PROBLEMS[inner.kind]}
    write_json(folder / CONFIG, config | labels | problem | {"architectures": [name]})
    return name
