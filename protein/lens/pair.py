"""The pair model under the lens: its head on the pair representation after each block, and its triangle updates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.lens.ablate import Part
from ...core.lens.decode import Direct, direct
from ...core.lens.edit import lens
from ...core.lens.effects import Scope
from ...core.lens.points import points
from ...core.lens.record import record_attention
from ...core.lens.scores import Pattern
from ...core.subject import Contrast, Depths, Subject, Table
from ...core.work import progress
from ..language.contact_head import contact_features
from ..pair.model import PairModel
from ..predict.metrics import precisions
from ..predict.predictors import PairPredictor
from ..read.alphabet import PAD, UNKNOWN, encode
from .chains import SCORE, Known, builtin, exchanged, precision


@dataclass
class PairSubject(Subject):
    """The pair model with chains, one after the other.

    Args:
        predictor: makes the inputs of a chain: profile and, of the chain alone, its rows.
        chains: what they are.
    """

    predictor: Any = None
    chains: list[Known] = field(default_factory=list)
    measures: tuple[str, ...] = ("likeness",)

    def __post_init__(self) -> None:
        if any(chain.contacts is not None for chain in self.chains):
            self.measures = ("contact precision", "likeness")
        super().__post_init__()
        with torch.no_grad():
            self.whole = self.run()

    def run(self) -> list[Tensor]:
        """Logits of contacts `[residues, residues]`, by chain."""
        return [self._logits(chain) for chain in self.chains]

    def _inputs(self, chain: Known) -> dict[str, Tensor | None]:
        return self.predictor.inputs_of(encode(chain.letters, chain.name), chain.profile, chain.rows)

    def _logits(self, chain: Known) -> Tensor:
        return self.model(**self._inputs(chain)).contacts[0]

    def score(self) -> dict[str, Tensor]:
        """The mean long-range P@L/5 where a structure is known; and the likeness to the whole model: minus the mean
        divergence of contact probabilities in nats.
        """
        found = self.run()
        apart = [_divergence(whole, new).mean() for whole, new in zip(self.whole, found)]
        scores = {"likeness": -torch.stack(apart).mean()}
        if len(self.measures) > 1:
            known = [logits.cpu() for logits, chain in zip(found, self.chains) if chain.contacts is not None]
            scores["contact precision"] = torch.tensor(precision(self.chains, known))
        return scores

    def heads(self) -> dict[tuple[int, int], Part]:
        """Those of both triangle attentions, side by side."""
        found: dict[tuple[int, int], Part] = {}
        for name, point in points(self.model).items():
            layer, _, kind = name.partition(".")
            if kind in ("start_z", "end_z"):
                first = 0 if kind == "start_z" else point.size
                found |= {(int(layer), first + head): (name, head) for head in range(point.size)}
        if not found:
            raise UserError(
                "This pair model has no triangle attention, so it has no heads; ask for depth, or for ablate --parts "
                "with 0.outgoing and the like."
            )
        return found

    def columns(self) -> list[str]:
        count = len({column for _, column in self.heads()}) // 2
        return [f"{name}_z:{head}" for name in ("start", "end") for head in range(count)]

    def patterns(self) -> dict[str, Pattern]:
        return {}

    def scores(self) -> dict[str, Tensor]:
        """The P@L/5 of each head's weights, in a mean over rows, where a structure is known; else its weight on pairs
        that the model itself takes for contacts.
        """
        depth, width = 1 + max(row for row, _ in self.heads()), len(self.columns())
        total, times = torch.zeros(depth, width), 0
        truth = any(chain.contacts is not None for chain in self.chains)
        for chain, whole in zip(self.chains, self.whole):
            contacts = chain.contacts if truth else (whole > 0).to(torch.int8).cpu()
            if contacts is None:
                continue
            with torch.no_grad(), record_attention(self.model, lambda _, weights: weights[0].mean(0)) as seen:
                self._logits(chain)
            found = torch.full((depth, width), float("nan"))
            for name, maps in seen.items():
                if ".attentions." not in name:
                    continue
                layer, side = int(name.split(".")[1]), int(name.split(".attentions.")[1].split(".")[0])
                residues = torch.ones(1, maps.shape[-1] + 2, dtype=torch.bool)
                padded = torch.nn.functional.pad(maps.cpu(), (1, 1, 1, 1))[None]
                features = contact_features(padded, residues)[0]
                values = precisions(features, contacts.expand(len(features), -1, -1))[SCORE]
                found[layer, side * len(values) : (side + 1) * len(values)] = values
            if bool(found.isnan().all()):
                continue
            total, times = total + found, times + 1
        return {"P@L/5": total / times if times else total.fill_(float("nan"))}

    @property
    def causal(self) -> bool:
        return False

    def answers(self, copies: int) -> Tensor:
        raise NotImplementedError("The pair model has pairs; see `once`.")

    def once(self) -> Tensor:
        """Logits of the first chain."""
        with torch.no_grad():
            return self._logits(self.chains[0])

    def weights(self, scope: Scope) -> tuple[Tensor, str]:
        """What residue i reads of residue k: the weight of (i, k) or (k, j) for an edge (i, j), in a mean over j, over
        heads, both triangles and all blocks.
        """
        found = self.single_weights()
        if scope is None:
            return torch.stack(list(found.values())).mean(0).double(), "all blocks (mean)"
        names = [f"{scope[0]}.{name}" for name in self.columns() if scope[1] in (None, self.columns().index(name))]
        about = f"layer {scope[0]}" + ("" if scope[1] is None else f", {self.columns()[scope[1]]}")
        return torch.stack([found[name] for name in names]).mean(0).double(), about

    def single_weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(name: str, weights: Tensor) -> None:
            if ".attentions." not in name:
                return
            side = int(name.split(".attentions.")[1].split(".")[0])
            # [rows, heads, queries, keys]; around the end node, rows are the other end of the edge.
            maps = weights[0].mean(2).transpose(0, 1) if side == 0 else weights[0].mean(0)
            for head, one in enumerate(maps):
                found[f"{name.split('.')[1]}.{('start_z', 'end_z')[side]}:{head}"] = one.cpu()

        with record_attention(self.model, keep):
            self.once()
        return found

    def check_head(self, layer: int, head: int | None) -> None:
        heads = self.heads()
        layers, columns = 1 + max(at for at, _ in heads), len(self.columns())
        if not 0 <= layer < layers:
            raise UserError(f"Layer {layer} is named, but the model has layers 0 to {layers - 1}.")
        if head is not None and not 0 <= head < columns:
            raise UserError(f"Head {head} is named, but each layer has heads 0 to {columns - 1} (of both triangles).")

    def passes(self, scope: Scope) -> int:
        return len(self.labels)

    @torch.no_grad()
    def effects(self, scope: Scope, group: int) -> tuple[Tensor, str]:
        """Of the whole model a residue is made unknown; in a block or head, the edges to it are cut."""
        chain, size = self.chains[0], len(self.labels)
        whole, found = self.once(), torch.full((size, size), float("nan"), dtype=torch.float64)
        inputs = self._inputs(chain)
        with progress("hiding residues", size, "passes") as step:
            for k in range(size):
                if scope is None:
                    new = self.model(**_hidden(inputs, k)).contacts[0]
                else:
                    edges = torch.zeros(size, size, dtype=torch.bool)
                    edges[:, k] = True
                    edges[k, k] = False
                    with lens(self.model, cut=self._cut(scope, edges)):
                        new = self._logits(chain)
                apart = _divergence(whole, new).cpu()
                apart[:, k] = 0
                found[:, k] = apart.sum(1) / max(size - 1, 1)
                step(1)
        how = "when the residue is made unknown" if scope is None else "when no pair reads the edges to it there"
        return found, f"Effect: mean divergence of the contacts of a residue in nats {how}."

    def _cut(self, scope: tuple[int, int | None], edges: Tensor) -> dict[int | str, Tensor]:
        cut: dict[int | str, Tensor] = {}
        for (layer, column), (name, number) in self.heads().items():
            if layer == scope[0] and scope[1] in (None, column):
                every = cut.setdefault(name, torch.zeros(len(self.columns()) // 2, *edges.shape, dtype=torch.bool))
                every[number] = edges
        return cut

    def direct(self, against: str | None, answer: str | None) -> tuple[Direct, str]:
        """To the mean logit of as many pairs as residues, those that are likeliest in contact."""
        super().direct(against, answer)
        far = torch.ones_like(self.whole[0]).triu(6)
        chosen = self.whole[0].masked_fill(far == 0, -torch.inf).flatten()
        chosen = chosen.topk(min(len(self.labels), int(far.sum()))).indices
        found = direct(self.model, lambda: self._logits(self.chains[0]).flatten()[chosen].mean(), self.model.head.norm)
        return found, f"mean logit of the {len(chosen)} pairs likeliest in contact"

    def contrast(self, against: str | None, answer: str | None) -> Contrast:
        """Two chains of one length; measured is how far the contacts go back to those of the clean one."""
        super().direct(against, answer)
        changed = exchanged(self.chains)
        labels = [f"*{label}" if at in changed else label for at, label in enumerate(self.labels)]
        clean, corrupted = self.whole
        way = (clean - corrupted).triu(6)
        size = way.square().sum()

        def measure(logits: Tensor) -> Tensor:
            return ((logits[0] - corrupted) * way).sum() / size

        about = "how far the contact logits of pairs at least six apart go from those of the corrupted chain to those "
        about += "of the clean one"
        model = _Called(self.model)
        return Contrast(self._inputs(self.chains[0]), self._inputs(self.chains[1]), measure, about, labels, model)

    def depths(self) -> Depths:
        """The model's own head on the pair representation after each block."""
        depth = len(self.model.blocks)
        names = ["0.resid_pre", *(f"{layer}.resid_post" for layer in range(depth))]
        maps: list[list[Tensor]] = [[] for _ in names]
        with torch.no_grad():
            for chain in self.chains:
                with lens(self.model, keep=names) as seen:
                    self._logits(chain)
                for found, name in zip(maps, names):
                    found.append(self.model.head(seen[name]).contacts[0])
        rows: list[list[Any]] = []
        curves: dict[str, list[float]] = {"divergence from the answer (nats)": []}
        known = [number for number, chain in enumerate(self.chains) if chain.contacts is not None]
        if known:
            curves["long-range P@L/5"] = []
        for number, found in enumerate(maps):
            apart = float(torch.stack([_divergence(w, x).mean() for w, x in zip(self.whole, found)]).mean())
            rows.append([number, apart])
            curves["divergence from the answer (nats)"].append(apart)
            if known:
                value = precision(self.chains, [found[at].cpu() for at in known])
                curves["long-range P@L/5"].append(value)
                rows[-1].append(value)
        columns, title = ["depth", "divergence from the answer (nats)"], "What each depth says"
        if known:
            zeros = [torch.zeros_like(self.whole[at]).cpu() for at in known]
            chance, ceiling = (precision(self.chains, zeros, kind) for kind in ("_chance", "_ceiling"))
            columns.append("long-range P@L/5")
            title += f" (P@L/5 by chance {chance:.3f}, of a perfect predictor {ceiling:.3f})"
        return Depths(Table(title, columns, rows), curves, "share or nats")


class _Called(nn.Module):
    """The pair model, called with all its inputs as one value."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor | None]) -> Tensor:
        return self.model(**inputs).contacts


def _hidden(inputs: dict[str, Tensor | None], k: int) -> dict[str, Tensor | None]:
    """The same inputs, with nothing known about residue k."""
    found = {name: None if value is None else value.clone() for name, value in inputs.items()}
    tokens, profile, msa = found["tokens"], found["profile"], found["msa"]
    assert tokens is not None
    tokens[:, k] = UNKNOWN
    if profile is not None:
        profile[:, k] = 0
    if msa is not None:
        msa[:, :, k] = torch.where(msa[:, :, k] == PAD, PAD, UNKNOWN)
    return found


def _divergence(whole: Tensor, new: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two chances of contact, from their logits, in nats."""
    p = whole.double().sigmoid()
    one, other = (torch.nn.functional.logsigmoid(x.double()) for x in (whole, new))
    no_one, no_other = (torch.nn.functional.logsigmoid(-x.double()) for x in (whole, new))
    return p * (one - other) + (1 - p) * (no_one - no_other)


def in_training(model: PairModel, inputs: dict[str, Any] | None) -> PairSubject:
    """The built-in chains with their structures, for a pair model that is being trained.

    Raises:
        UserError: it has no triangle attention.
    """
    chains, _ = builtin()
    subject = PairSubject(model, [], [], predictor=PairPredictor.of(model, inputs), chains=chains)
    subject.heads()
    return subject


def pair_subject(folder: Path, name: str, chains: list[Known], about: list[str], options: Any) -> PairSubject:
    """The pair model in a folder with chains."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        predictor = PairPredictor.load(folder, device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None
    model = predictor.model
    assert isinstance(model, PairModel)
    model.config = replace(model.config, checkpoint="none")  # what is computed twice would be looked at twice
    labels = [f"{letter}{at}" for at, letter in enumerate(chains[0].letters, 1)]
    about = [f"{name}: {predictor.about}", *about]
    return PairSubject(model, about, labels, options.measure or "", predictor=predictor, chains=chains)
