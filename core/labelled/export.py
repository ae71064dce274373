"""A model with a head in the form of other libraries' classifiers."""

from __future__ import annotations

from collections.abc import Mapping
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
from .headed import PROBLEMS, SEQUENCES, TOKENS, Form
from .model import ACTIVATIONS, NORMED, Hidden, LabelledModel
from .run import Modality


def classifier(head: Head) -> tuple[Tensor, Tensor]:
    """Weight `[width, dim]` and bias `[width]` of a head that is one linear layer; of numbers in their own unit.

    Raises:
        UserError: it is more than that.
    """
    head = _inner(head)
    if head.kind not in PROBLEMS or (isinstance(head, Regress) and head.options.distribution != "point"):
        what = head.kind if head.kind not in PROBLEMS else f"{head.kind} with distribution {head.options.distribution}"
        raise UserError(
            f"A head of kind {what} has no counterpart in other libraries, whose classifiers end in one linear layer; "
            "keep the run in triune's format."
        )
    linear: Any = head.linear
    weight, bias = linear.weight.detach().float(), linear.bias.detach().float()
    if isinstance(head, Regress):
        std, mean = (torch.tensor(head.trained(name), dtype=torch.float32) for name in ("std", "mean"))
        return weight * std[:, None], bias * std + mean
    return weight.clone(), bias.clone()


def form_for(model: LabelledModel, config: Mapping[str, Any]) -> tuple[Form, str]:
    """Their form of this head beside a model of this config, and the class that has it. Raises UserError where there is
    none, saying what differs.
    """
    kind, model_type = "Token" if model.head.per_token else "Sequence", str(config.get("model_type"))
    known = TOKENS if model.head.per_token else SEQUENCES
    if model_type not in known:
        raise UserError(
            f"Hugging Face's {kind.lower()} classifier of {model_type} has another head than those that are written "
            f"({', '.join(known)}); keep the run in triune's format."
        )
    form = known[model_type].read(config, "this model")
    name = f"{form.cls}For{kind}Classification"
    pool, hidden = model.config.pool, model.config.hidden
    pools = ["class", "mean"] if form.pools else [form.pool]
    layers = [f"{act}{NORMED}" for act in ACTIVATIONS] if form.norm else [form.hidden]
    if pool not in pools or hidden not in layers:
        had = (f"pool {pool}" if pool else "a head of every token") + (f" and hidden {hidden}" if hidden else "")
        options = ([f"--model.pool {form.pool}"] if form.pool else []) + (
            [f"--model.hidden {form.hidden}"] if form.hidden else []
        )
        what = f"train with {' '.join(options)}" if options else "leave --model.hidden out"
        raise UserError(f"{name} has another head: this model was trained with {had}; {what}.")
    if (wanted := model.reads_of(model.trunk, pool)) and not wanted.items() <= model.config.reads.items():
        raise UserError(
            f"{name} lets the first token see all, and this model was trained without; train it anew, or keep the run "
            "in triune's format."
        )
    return form, name


def write_head(modality: Modality, room: Any, source: Path, folder: Path, library: str = "hf") -> list[str]:
    """Writes the model in the folder `source` for another library; returns what is to be said.

    Args:
        modality: of the model.
        room: the task's module of checkpoints.
        source: a model folder of ours.
        folder: where to.
        library: whose format.

    Raises:
        UserError: the library has no class for it; the sentence says what differs.
    """
    model: Any = modality.model.from_pretrained(source).eval()
    classifier(model.head)
    if modality.whole_trunk is None:
        raise UserError(f"Heads of {modality.task} are not written for others; keep the run in triune's format.")
    trunk = modality.whole_trunk(model, library)
    if model.config.reads.get("profile"):
        raise UserError("This model reads profiles, which no model of Hugging Face does; keep it in triune's format.")
    companion = getattr(modality.reader(model, source), "tokenizer", None)
    with replaced_folder(folder) as new:
        room.export(Pretrained(trunk, open_source(str(source)), None, companion), new / "x", library)
        name = add_head(model, new / "x") if library == "hf" else f"model of {library}"
        for file in (new / "x").iterdir():
            file.rename(new / file.name)
        (new / "x").rmdir()
    names = list(_inner(model.head).spec.names)
    said = [f"{folder} holds a {name} of {len(names):,} {'labels' if len(names) > 1 else 'label'}."]
    if model.head.spec.calibration:
        said.append("The calibration stays behind: its logits are those of the model as it was trained.")
    return said


def _inner(head: Head) -> Head:
    """The head of one token, of a head that reads every token."""
    return head.each if isinstance(head, Tag) else head


def add_head(model: LabelledModel, folder: Path) -> str:
    """Adds the head to a folder that holds the trunk in Hugging Face's format; returns the class that reads both."""
    config = read_json(folder / CONFIG)
    inner = _inner(model.head)
    problem = {} if model.head.per_token else {"problem_type": PROBLEMS[inner.kind]}
    name = str(config["architectures"][0])
    if "ForImageClassification" in name:  # the head is a part of the trunk there
        write_json(folder / CONFIG, config | problem)
        return name
    form, name = form_for(model, config)
    from safetensors.torch import save

    weight, offset = classifier(model.head)
    left_out = ("cls.", "lm_head.", *form.lacks)
    tensors = read_safetensors(folder / WEIGHTS)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(left_out)}
    tensors |= {f"{form.last}.weight": weight, f"{form.last}.bias": offset}
    bias = False
    if isinstance(hidden := model.hidden, Hidden):
        written = {form.dense: hidden.dense.state_dict()}
        bias = not form.biased or bool(written[form.dense]["bias"].any())
        if not bias:
            del written[form.dense]["bias"]
        written |= {form.norm: hidden.norm.state_dict()} if hidden.norm is not None else {}
        tensors |= {f"{layer}.{part}": w.detach() for layer, state in written.items() for part, w in state.items()}
    write_atomic(folder / WEIGHTS, save({key: value.contiguous() for key, value in tensors.items()}, {"format": "pt"}))
    names = list(inner.spec.names)
    labels = {"id2label": {str(i): n for i, n in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}
    said = form.settings(model.config.pool, model.config.hidden, bias)
    write_json(folder / CONFIG, config | labels | problem | said | {"architectures": [name]})
    return name
