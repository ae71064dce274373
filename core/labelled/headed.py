"""Classifiers of Hugging Face: which layers stand between their model and their logits, and how they are read here."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.family import Pretrained
from ..checkpoints.native import refuse_not_finite
from ..checkpoints.source import Source
from ..errors import UserError
from ..heads.base import Head, HeadSpec
from ..heads.names import apart
from ..heads.registry import head_class
from ..heads.tag import Tag
from .model import NORMED, OWN, LabelledConfig

PROBLEMS = {"classify": "single_label_classification", "multilabel": "multi_label_classification",
            "regress": "regression"}  # fmt: skip
"""What their configs call our kinds."""
_CLASS = re.compile(r"(\w+)For(Sequence|Token|Image)Classification\w*")


@dataclass(frozen=True)
class Form:
    """One of their classifiers of sequences or tokens.

    Args:
        cls: what the name of the class begins with.
        pool: ours of the vector that its layers read.
        hidden: activation of a layer before the last one.
        dense: name of that layer's weights.
        last: name of the last layer's weights.
        lacks: layers of the model itself that the file of a classifier does not have.
        norm: name of a norm behind that activation.
        act: key of their config that names the activation, in the place of `hidden`, and its value without the key.
        pools: whether `classifier_pooling` of their config says the pool; `pool` is that without the key.
        biased: key of their config that says whether the layer has a bias; empty where it always has.
    """

    cls: str
    pool: str | None
    hidden: str | None = None
    dense: str = ""
    last: str = "classifier"
    lacks: tuple[str, ...] = ()
    norm: str = ""
    act: tuple[str, str] | None = None
    pools: bool = False
    biased: str = ""

    def read(self, config: Mapping[str, Any], source: str) -> Form:
        """The form of a model with this config. Raises UserError for an activation or pool that is not known here."""
        pool, hidden = self.pool, self.hidden
        if self.act:
            key, usual = self.act
            if (word := config.get(key, usual)) not in WORDS:
                raise UserError(f"'{source}' has {key} = {word!r}, but its head must have one of {', '.join(WORDS)}.")
            hidden = WORDS[word] + NORMED * bool(self.norm)
        if self.pools:
            word = config.get("classifier_pooling", "cls")
            if word not in POOL_WORDS.values():
                raise UserError(f"'{source}' has classifier_pooling = {word!r}, but must have cls or mean.")
            pool = next(ours for ours, theirs in POOL_WORDS.items() if theirs == word)
        return replace(self, pool=pool, hidden=hidden)

    def settings(self, pool: str | None, hidden: str | None, bias: bool) -> dict[str, Any]:
        """What their config says of such a pool and layer."""
        found: dict[str, Any] = {"classifier_pooling": POOL_WORDS[pool]} if self.pools and pool else {}
        if self.act and hidden:
            found[self.act[0]] = next(w for w, ours in WORDS.items() if ours == hidden.removesuffix(NORMED))
        return found | ({self.biased: bias} if self.biased else {})


WORDS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip
"""Their activation -> ours; of several names for one the first is written."""
POOL_WORDS = {"class": "cls", "mean": "mean"}
"""Our pool -> theirs."""
_MODERN: Any = {"dense": "head.dense", "norm": "head.norm", "act": ("classifier_activation", "gelu"),
                "biased": "classifier_bias"}  # fmt: skip
_LIKE_ROBERTA: Any = ("class", "tanh", "classifier.dense", "classifier.out_proj", ("roberta.pooler.dense",))
_ESM = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
SEQUENCES = {
    "bert": Form("Bert", OWN), "distilbert": Form("DistilBert", "class", "relu", "pre_classifier"),
    "roberta": Form("Roberta", *_LIKE_ROBERTA), "xlm-roberta": Form("XLMRoberta", *_LIKE_ROBERTA),
    "camembert": Form("Camembert", *_LIKE_ROBERTA),
    "esm": Form("Esm", "class", "tanh", "classifier.dense", "classifier.out_proj", _ESM),
    "longformer": Form(
        "Longformer", "class", "tanh", "classifier.dense", "classifier.out_proj", ("longformer.pooler.dense",)
    ),
    "big_bird": Form(
        "BigBird", "class", None, "classifier.dense", "classifier.out_proj", act=("hidden_act", "gelu_new")
    ),
    "modernbert": Form("ModernBert", "class", pools=True, **_MODERN),
}  # fmt: skip
"""Classifiers of a whole input by `model_type`."""
TOKENS = {
    name: Form(form.cls, None, lacks=_ESM if name == "esm" else (f"{base}.pooler.dense",) if base else ())
    for (name, form), base in zip(
        SEQUENCES.items(), ("bert", "", "roberta", "roberta", "roberta", "", "longformer", "", ""), strict=True
    )
} | {"modernbert": Form("ModernBert", None, **_MODERN)}
"""Classifiers of every token by `model_type`."""
DECODER = Form("", "last", last="score")
"""Of a causal language model; its last layer has no bias."""


@dataclass(frozen=True)
class Headless(Source):
    """A classifier's checkpoint as that of the model below its head.

    Args:
        classes: `architectures` of the model below; empty for what its family takes without any.
        head: names of the weights of the head.
        lacks: layers that the model itself has and the file has not; they are zero.
    """

    classes: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    @cached_property
    def config(self) -> dict[str, Any]:
        below = {"architectures": list(self.classes) or None}
        return Source(self.name, self.path).config | below | ({} if self.classes else {"tie_word_embeddings": True})

    def tensors(self) -> Mapping[str, Tensor]:
        found = {name: tensor for name, tensor in super().tensors().items() if name not in self.head}
        config = super().config
        return found | {k: v for layer in self.lacks for k, v in _zeros(layer, config).items() if k not in found}


def _zeros(layer: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a layer that the file of a classifier lacks."""
    dim = int(config.get("hidden_size") or 0)
    if layer == "lm_head.bias":
        return {layer: torch.zeros(int(config.get("vocab_size") or 0))}
    weight = torch.zeros(dim) if layer.endswith("norm") else torch.zeros(dim, dim)
    return {f"{layer}.weight": weight, f"{layer}.bias": torch.zeros(dim)}


@dataclass
class Headed:
    """A classifier of another library as ours.

    Args:
        model: a `LabelledModel` in evaluation mode.
        below: the checkpoint without the head.
        name: of its class there.
    """

    model: Any
    below: Pretrained
    name: str


def class_of(source: Source) -> str:
    """The name of the classifier's class that a checkpoint of Hugging Face is of; empty for another checkpoint."""
    if source.file is not None or source.is_ours:
        return ""
    names = source.config.get("architectures")
    first = names[0] if isinstance(names, list) and names else ""
    return first if isinstance(first, str) and _CLASS.fullmatch(first) else ""


def form_of(source: Source, tensors: Collection[str]) -> Form:
    """How a classifier's head is built. Raises UserError, listing what is read, for one that is not known."""
    name, model_type = class_of(source), str(source.config.get("model_type"))
    found = _CLASS.fullmatch(name)
    assert found is not None
    known = TOKENS if found[2] == "Token" else SEQUENCES
    if model_type in known and known[model_type].cls == found[1]:
        return known[model_type].read(source.config, source.name)
    if found[2] == "Sequence" and f"{DECODER.last}.weight" in tensors:
        return DECODER
    raise UserError(
        f"'{source.name}' is a {name}, whose head is not read; those that are: "
        f"{', '.join(f'{form.cls}For{found[2]}Classification' for form in known.values())}, and For"
        "SequenceClassification of causal language models."
    )


def spec_of(config: Mapping[str, Any], per_token: bool, width: int, source: str) -> HeadSpec:
    """The head that a config of theirs describes: names in the order of their numbers in `id2label`; equal ones get
    their number.

    Raises:
        UserError: there are not as many names as outputs.
    """
    listed = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(width)}
    try:
        numbers = {int(key): str(name) for key, name in listed.items()}
    except (ValueError, AttributeError):
        numbers = {}
    if sorted(numbers) != list(range(width)):
        raise UserError(
            f"The config of '{source}' names {len(numbers)} labels (id2label), but its head has {width} outputs; mend "
            "its config.json."
        )
    kinds = {problem: kind for kind, problem in PROBLEMS.items()}
    problem = config.get("problem_type")
    if problem is not None and problem not in kinds:
        raise UserError(f"The config of '{source}' has problem_type {problem!r}, but must have one of {list(kinds)}.")
    kind = "tag" if per_token else kinds.get(str(problem), "regress" if width == 1 else "classify")
    names = apart([numbers[i] for i in range(width)])
    return HeadSpec(kind, tuple(names), {"numbers": width == 1} if per_token else {})


def set_linear(head: Head, weight: Tensor, bias: Tensor | None) -> None:
    """Sets the one linear layer of a head; no bias means zero."""
    inner: Any = head.each if isinstance(head, Tag) else head
    with torch.no_grad():
        inner.linear.weight.copy_(weight)
        inner.linear.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)


def open_headed(
    source: Source, load: Callable[[Source], Pretrained], kind: type[Any], reads: Callable[[Pretrained, bool], Any]
) -> Headed | None:
    """A classifier of Hugging Face as a model of ours; None for a checkpoint that is none.

    Args:
        source: the checkpoint.
        load: of the task, for the model below the head.
        kind: class of our models with a head.
        reads: settings of the input, from the model below and whether the head reads every token.

    Raises:
        UserError: its head is not known, or its config and weights do not agree.
    """
    name = class_of(source)
    if not name or "ForImage" in name:
        return None
    tensors = source.tensors()
    form = form_of(source, tensors)
    layers = [layer for layer in (form.dense, form.norm, form.last) if layer]
    names = tuple(f"{layer}.{part}" for layer in layers for part in ("weight", "bias"))
    # What their config decides about; a bias that is not there is zero.
    may = {"score.bias"} if form is DECODER else {f"{form.norm}.bias", *([f"{form.dense}.bias"] if form.biased else [])}
    absent = [part for part in names if part not in tensors and part not in may]
    if absent:
        raise UserError(f"'{source.name}' is a {name}, but has no {absent[0]}; it was damaged or is another model's.")
    refuse_not_finite([part for part in names if part in tensors and not tensors[part].isfinite().all()], source.name)
    classes = (f"{form.cls}Model",) if form.cls else ()
    below = load(Headless(source.name, source.path, classes=classes, head=names, lacks=form.lacks))
    weight: Tensor = tensors[f"{form.last}.weight"]
    per_token = form.pool is None
    spec = spec_of(source.config, per_token, len(weight), source.name)
    trunk: Any = below.model
    if form.lacks and getattr(trunk, "pooler", None) is not None:
        trunk.pooler, trunk.config = None, replace(trunk.config, pooler=False)
    config = LabelledConfig(
        trunk.architecture, trunk.settings()[trunk.config_entry], full(spec).to_dict(), form.pool,
        reads(below, per_token) | kind.reads_of(trunk, form.pool), form.hidden,
    )  # fmt: skip
    model = kind(config, trunk).eval()
    if (given := model.head.dim) != weight.shape[1]:
        raise UserError(f"The head of '{source.name}' reads {weight.shape[1]} numbers, but its model gives {given}.")
    set_linear(model.head, weight, tensors.get(f"{form.last}.bias"))
    if form.hidden:
        _set_hidden(model.hidden, form, tensors, source.name)
    return Headed(model, below, name)


def _set_hidden(hidden: Any, form: Form, tensors: Mapping[str, Tensor], source: str) -> None:
    """Sets the layer before the head. Raises UserError for a norm of another kind than that of the model below."""
    with torch.no_grad():
        hidden.dense.weight.copy_(tensors[f"{form.dense}.weight"])
        bias = tensors.get(f"{form.dense}.bias")
        hidden.dense.bias.copy_(torch.zeros_like(hidden.dense.bias) if bias is None else bias)
        for part, weight in ((part, tensors.get(f"{form.norm}.{part}")) for part in ("weight", "bias") if form.norm):
            ours = getattr(hidden.norm, part)
            if (ours is None) != (weight is None):
                raise UserError(f"The norm of the head of '{source}' has other weights than the norms of its model.")
            if ours is not None and weight is not None:
                ours.copy_(weight)


def with_head(found: Headed | None) -> Pretrained | None:
    """The model below a classifier, which remembers the head; None for None."""
    if found is None:
        return None
    found.below.headed = found.model
    return found.below


def full(spec: HeadSpec) -> HeadSpec:
    """The same with all options of its kind, as `prepare` would write them."""
    options: Any = head_class(spec.kind).Options
    return replace(spec, options=asdict(options(**spec.options)))
