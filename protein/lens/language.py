"""A masked language model of proteins under the lens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import UserError
from ...core.files import few
from ...core.lens.decode import Direct, depth_lens, direct
from ...core.lens.effects import Scope, rank_correlation
from ...core.lens.scores import Pattern, itself, previous
from ...core.subject import Contrast, Depths, Square, Subject, Table, only_real
from ..language.contact_head import ContactHead, stream_features
from ..language.jacobian import AMINO, FIRST, categorical_jacobian, jacobian_contacts, jacobian_effects
from ..language.model import MASK, PAD
from ..predict.metrics import precisions
from .chains import SCORE, Known, exchanged, precision

MASKED = 0.15
"""Share of the residues that are masked and foretold."""


@dataclass
class ProteinSubject(Subject):
    """A masked language model of proteins with chains, padded on the right where their lengths differ.

    Args:
        ids: ESM-2 ids `[chains, tokens]`.
        chains: what they are.
        head: the contact regression, if there is one.
        seed: of the masked residues.
    """

    ids: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.long))
    chains: list[Known] = field(default_factory=list)
    head: ContactHead | None = None
    seed: int = 0
    measures: tuple[str, ...] = ("log-probability", "accuracy")

    def __post_init__(self) -> None:
        if self.head is not None and self._truths():
            self.measures = (*self.measures, "contact precision")
        super().__post_init__()
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.rand(self.ids.shape, generator=generator).to(self.ids.device) < MASKED
        self.masked = chosen & self._residues()
        if not bool(self.masked.any()):
            self.masked[0, self.ids.shape[1] // 2] = True

    def _residues(self) -> Tensor:
        """True for residues, not for special tokens; bool `[chains, tokens]`."""
        here = torch.zeros_like(self.ids, dtype=torch.bool)
        for row, chain in zip(here, self.chains):
            row[1 : len(chain.letters) + 1] = True
        return here

    def _truths(self) -> list[int]:
        return [number for number, chain in enumerate(self.chains) if chain.contacts is not None]

    def run(self) -> Tensor:
        """Logits `[chains, tokens, vocabulary]` of the chains as they are."""
        return self.model(self.ids)

    def score(self) -> dict[str, Tensor]:
        """Of masked residues: mean log-probability in nats and the share that is foretold; and the precision of
        contacts, where a structure and a contact head say it.
        """
        if self.picked == "contact precision":
            return {"contact precision": torch.tensor(precision(self.chains, self._head_logits()))}
        logits = self.model(self.ids.masked_fill(self.masked, MASK))[self.masked]
        own = self.ids[self.masked]
        chances = logits.float().log_softmax(-1).gather(1, own[:, None])
        return {"log-probability": chances.mean(), "accuracy": (logits.argmax(-1) == own).float().mean()}

    def _head_logits(self) -> list[Tensor]:
        assert self.head is not None
        model: Any = self.model
        return [self.head(model, self._alone(number))[0].cpu() for number in self._truths()]

    def _alone(self, number: int) -> Tensor:
        return self.ids[number : number + 1, : len(self.chains[number].letters) + 2]

    def patterns(self) -> dict[str, Pattern]:
        valid = self.ids != PAD
        last = valid.sum(1) - 1
        found: dict[str, Pattern] = {
            "previous": previous,
            "next": lambda tokens, device: _shifted(tokens, device),
            "first": lambda tokens, device: _constant(torch.zeros_like(last), tokens, device),
            "last": lambda tokens, device: _constant(last, tokens, device),
            "itself": itself,
        }
        if self._truths():
            found = {"contacts": self._contacts()} | found
        return {name: only_real(pattern, valid) for name, pattern in found.items()}

    def _contacts(self) -> Pattern:
        """Residues in contact, at least six apart."""
        rows: list[list[list[int]]] = []
        for chain in self.chains:
            row: list[list[int]] = [[] for _ in range(self.ids.shape[1])]
            if chain.contacts is not None:
                for i, j in (chain.contacts == 1).nonzero().tolist():
                    if abs(i - j) >= 6:
                        row[i + 1].append(j + 1)
            rows.append(row)
        most = max(1, max(len(keys) for row in rows for keys in row))
        table = torch.tensor([[keys + [-1] * (most - len(keys)) for keys in row] for row in rows])
        return lambda tokens, device: table.to(device)

    def more_scores(self) -> dict[str, Tensor]:
        """The long-range P@L/5 of each head's map, symmetrised and corrected as for the contact head."""
        if not self._truths():
            return {}
        config = self.model.config.transformer
        total = torch.zeros(config.depth, config.heads)
        times = torch.zeros(config.depth, 1)
        model: Any = self.model
        for number in self._truths():
            contacts = self.chains[number].contacts
            assert contacts is not None

            def score(layer: int, maps: Tensor, contacts: Tensor = contacts) -> None:
                found = precisions(maps[0].cpu(), contacts.expand(maps.shape[1], -1, -1))[SCORE]
                if not bool(found.isnan().any()):
                    total[layer] += found
                    times[layer] += 1

            stream_features(model, self._alone(number), score)
        return {"P@L/5": torch.where(times > 0, total / times.clamp(min=1), torch.nan)}

    def visible(self) -> Tensor:
        real = self.ids != PAD
        return real[:, :, None] & real[:, None]

    def answers(self, copies: int) -> Tensor:
        return self.model(self._alone(0).expand(copies, -1)).float().log_softmax(-1)

    def passes(self, scope: Scope) -> int:
        return len(self.labels) - 1 if scope is not None else AMINO * (len(self.labels) - 2)

    def effects(self, scope: Scope, group: int) -> tuple[Tensor, str]:
        """Of the whole model the categorical Jacobian; in a layer or head, edges are cut."""
        if scope is not None:
            return super().effects(scope, group)
        jacobian = categorical_jacobian(self.model, self._alone(0), max(group, AMINO))
        self.extra["jacobian contacts"] = jacobian_contacts(jacobian)
        found = torch.full((len(self.labels), len(self.labels)), float("nan"), dtype=torch.float64)
        found[1:-1, 1:-1] = jacobian_effects(jacobian)
        self.unit = "logits"
        return found, (
            "Effect: how far the logits at a place move when a residue is exchanged for each of the 20 amino acids "
            "(root mean square of the categorical Jacobian)."
        )

    def maps(self) -> tuple[list[Table], list[Square]]:
        """Contacts from the Jacobian beside those from attention."""
        causal = self.extra.get("jacobian contacts")
        if causal is None:
            return [], []
        truth, model = self.chains[0].contacts, self.model
        maps = {"categorical Jacobian": causal}
        if self.head is not None:
            maps["attention, contact head"] = self.head(model, self._alone(0))[0].cpu()  # type: ignore[arg-type]
        best = self._best_head(truth)
        maps |= best
        rows: list[list[Any]] = []
        upper = torch.ones_like(causal, dtype=torch.bool).triu(6)
        for name, scores in maps.items():
            r = rank_correlation(scores[upper], causal[upper]) if name != "categorical Jacobian" else None
            row: list[Any] = [name, r]
            if truth is not None:
                found = precisions(scores[None], truth[None])
                row += [float(found[f"{SCORE}{kind}"]) for kind in ("", "_chance", "_ceiling")]
                row.append(float(found["long_p_at_l"]))
            rows.append(row)
        columns = ["contacts from", "rank correlation with the Jacobian"]
        if truth is not None:
            columns += ["long-range P@L/5", "chance", "ceiling", "P@L"]
        other = next((name for name in maps if name != "categorical Jacobian"), None)
        marks = [] if truth is None else (truth == 1).triu(6).nonzero().tolist()
        square = Square("Contacts", f"above the diagonal {other or 'the same'}; below it categorical Jacobian",
                        maps[other] if other else causal, causal, marks)  # fmt: skip
        return [Table(f"Contacts of {self.chains[0].name}, used beside read", columns, rows)], [square]

    def _best_head(self, truth: Tensor | None) -> dict[str, Tensor]:
        """The map of the single head that agrees best with the structure."""
        if truth is None:
            return {}
        best: tuple[float, str, Tensor | None] = (-1.0, "", None)
        model: Any = self.model

        def keep(layer: int, maps: Tensor) -> None:
            nonlocal best
            found = precisions(maps[0].cpu(), truth.expand(maps.shape[1], -1, -1))[SCORE].nan_to_num(nan=-1)
            head = int(found.argmax())
            if float(found[head]) > best[0]:
                best = (float(found[head]), f"attention, best head of this chain ({layer}.{head})", maps[0, head].cpu())

        stream_features(model, self._alone(0), keep)
        return {} if best[2] is None else {best[1]: best[2]}

    def depths(self) -> Depths:
        """Masked letters by depth; and contacts by depth where a structure is known."""
        model: Any = self.model
        given = self.ids.masked_fill(self.masked, MASK)
        own = self.ids[self.masked]

        def decode(x: Tensor) -> tuple[float, float]:
            logits = F.linear(model.head(x[self.masked]), model.embedding.weight, model.head.bias)
            chances = logits.float().log_softmax(-1).gather(1, own[:, None])
            return float(chances.mean()), float((logits.argmax(-1) == own).float().mean())

        found = depth_lens(model, lambda: model(given), decode)
        rows: list[list[Any]] = [[depth, chance, right] for depth, (chance, right) in enumerate(found)]
        columns = ["depth", "log p of masked residues", "accuracy"]
        curves = {"accuracy of masked residues": [right for _, right in found]}
        if self._truths():
            best = self.more_scores()["P@L/5"].max(1).values.tolist()
            summed = self._by_depth()
            for row, single, several in zip(rows, [None, *best], [None, *summed]):
                row += [single, *([] if self.head is None else [several])]
            columns += ["best head's P@L/5", *([] if self.head is None else ["contact head up to here"])]
            curves["best head of the layer: P@L/5"] = [float("nan"), *best]
            if self.head is not None:
                curves["contact head up to here: P@L/5"] = [float("nan"), *summed]
            chance, ceiling = (precision(self.chains, self._zeros(), kind) for kind in ("_chance", "_ceiling"))
            title = f"What each depth says (P@L/5 by chance {chance:.3f}, of a perfect predictor {ceiling:.3f})"
            return Depths(Table(title, columns, rows), curves, "share")
        return Depths(Table("What each depth says", columns, rows), curves, "share")

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros(len(self.chains[n].letters), len(self.chains[n].letters)) for n in self._truths()]

    def _by_depth(self) -> list[float]:
        """P@L/5 of the contact head's sum over the first layers, by the number of them less one."""
        if self.head is None:
            return [float("nan")] * self.model.config.transformer.depth
        model: Any = self.model
        sums = [self._zeros() for _ in range(self.model.config.transformer.depth)]
        for at, number in enumerate(self._truths()):

            def add(layer: int, maps: Tensor, at: int = at) -> None:
                part = (self.head.weight[layer].to(maps)[:, None, None] * maps[0]).sum(0).cpu()  # type: ignore[union-attr]
                for later in sums[layer:]:
                    later[at] += part

            stream_features(model, self._alone(number), add)
        return [precision(self.chains, maps) for maps in sums]

    def direct(self, against: str | None, answer: str | None) -> tuple[Direct, str]:
        """To the mean logit of the masked residues' own letters, less the mean over all twenty."""
        super().direct(against, answer)
        own, letters = self.ids[self.masked], slice(FIRST, FIRST + AMINO)

        def score() -> Tensor:
            logits = self.model(self.ids.masked_fill(self.masked, MASK))[self.masked]
            return (logits.gather(1, own[:, None])[:, 0] - logits[:, letters].mean(1)).mean()

        return direct(self.model, score), "logit of masked residues less the mean of all letters"

    def contrast(self, against: str | None, answer: str | None) -> Contrast:
        if against or answer:
            raise UserError(
                "--answer and --against name tokens or classes, which a protein does not have; leave them out."
            )
        one, other = (chain.letters for chain in (self.chains * 2)[:2])
        changed = exchanged(self.chains)
        same = torch.tensor([at + 1 for at in range(len(one)) if at not in changed])
        if not len(same):
            raise UserError("The two chains have no residue in common; exchange a few residues of one.")
        letters = self.ids[0, same]
        labels = [f"*{label}" if at - 1 in changed else label for at, label in enumerate(self.labels)]

        def measure(logits: Tensor) -> Tensor:
            return logits[0, same].float().log_softmax(-1).gather(1, letters[:, None]).mean()

        words = few([f"{one[at]}{at + 1}{other[at]}" for at in changed], 6)
        about = f"mean log-probability of the {len(same)} residues that both chains share ({words})"
        return Contrast(self.ids[:1], self.ids[1:], measure, about, labels)


def _shifted(tokens: int, device: torch.device) -> Tensor:
    """The token after."""
    after = torch.arange(1, tokens + 1, device=device)
    return torch.where(after < tokens, after, -1)[None, :, None]


def _constant(place: Tensor, tokens: int, device: torch.device) -> Tensor:
    """One place of each row, for all other tokens."""
    at = torch.arange(tokens, device=device)[None]
    place = place.to(device)[:, None]
    return torch.where(at == place, -1, place.expand(-1, tokens))[..., None]
