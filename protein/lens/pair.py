"""The pair model under the lens: its head on the pair representation after each block, and its triangle updates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.lens.ablate import Part
from ...core.lens.edit import lens
from ...core.lens.points import points
from ...core.lens.record import record_attention
from ...core.lens.scores import Pattern
from ...core.subject import Depths, Subject, Table
from ..language.contact_head import contact_features
from ..pair.model import PairModel
from ..predict.metrics import precisions
from ..predict.predictors import PairPredictor
from ..read.alphabet import encode
from .chains import SCORE, Known, precision


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

    def _logits(self, chain: Known) -> Tensor:
        inputs = self.predictor.inputs_of(encode(chain.letters, chain.name), chain.profile, chain.rows)
        return self.model(**inputs).contacts[0]

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

    def answers(self, copies: int) -> Tensor:
        raise UserError(
            "What a place reads and uses is shown of models with tokens, but the pair model has pairs; ask for heads, "
            "ablate or depth."
        )

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


def _divergence(whole: Tensor, new: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two chances of contact, from their logits, in nats."""
    p = whole.double().sigmoid()
    one, other = (torch.nn.functional.logsigmoid(x.double()) for x in (whole, new))
    no_one, no_other = (torch.nn.functional.logsigmoid(-x.double()) for x in (whole, new))
    return p * (one - other) + (1 - p) * (no_one - no_other)


def pair_subject(folder: Path, name: str, chains: list[Known], about: list[str], options: Any) -> PairSubject:
    """The pair model in a folder with chains."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        predictor = PairPredictor.load(folder, device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None
    model = predictor.model
    assert isinstance(model, PairModel)
    labels = [f"{letter}{at}" for at, letter in enumerate(chains[0].letters, 1)]
    about = [f"{name}: {predictor.about}", *about]
    return PairSubject(model, about, labels, options.measure or "", predictor=predictor, chains=chains)
