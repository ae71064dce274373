"""What an image model lends to `triune lens`: images, the grid of their patches, and the model's own class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..core.lens.decode import Direct, depth_lens, direct
from ..core.lens.effects import Scope, hidden_tokens, layer_weights
from ..core.lens.scores import Pattern
from ..core.subject import Contrast, Depths, Square, Subject, Table
from ..core.work import progress

MOST = 256
"""Images at most."""


@dataclass
class ImageSubject(Subject):
    """A classifier, or a backbone without classes, with images.

    Args:
        images: preprocessed, `[images, channels, height, width]`.
        names: of the classes; empty for a backbone.
        files: names of the images.
        temperature: logits are divided by it.
    """

    images: Tensor = field(default_factory=lambda: torch.zeros(0))
    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    temperature: float = 1.0
    measures: tuple[str, ...] = ("log-probability", "agreement")

    def __post_init__(self) -> None:
        if not self.names:
            self.measures, self.unit = ("similarity",), "cosine"
        super().__post_init__()
        with torch.no_grad():
            self.whole = self.run()

    def run(self) -> Tensor:
        """Logits `[images, classes]`, or of a backbone the pooled vectors."""
        return self.model(self.images)

    def score(self) -> dict[str, Tensor]:
        """Of the class that the whole model names: mean log-probability in nats, and how often it is still named. Of a
        backbone: the mean cosine of its pooled vectors and those of the whole model.
        """
        found = self.run()
        if not self.names:
            return {"similarity": F.cosine_similarity(found, self.whole, dim=-1).mean()}
        own = self.whole.argmax(-1)
        chances = (found.float() / self.temperature).log_softmax(-1).gather(1, own[:, None])
        return {"log-probability": chances.mean(), "agreement": (found.argmax(-1) == own).float().mean()}

    def patterns(self) -> dict[str, Pattern]:
        rows, columns = self.grid or (1, 1)
        prefix = len(self.labels) - rows * columns

        def of_patches(keep: Any) -> Pattern:
            at = torch.arange(rows * columns)
            r, c = at // columns, at % columns
            near = keep(r[:, None] - r[None], c[:, None] - c[None])
            most = int(near.sum(1).max())
            keys = torch.where(near, at[None] + prefix, -1).sort(1, descending=True).values[:, :most]
            keys = torch.cat(
                [torch.full((prefix, max(most, 1)), -1), keys if most else keys.new_full((len(at), 1), -1)]
            )
            return lambda tokens, device: keys[None].to(device)

        found = {
            "neighbours": of_patches(lambda r, c: (r.abs() <= 1) & (c.abs() <= 1) & ((r != 0) | (c != 0))),
            "same row": of_patches(lambda r, c: (r == 0) & (c != 0)),
            "same column": of_patches(lambda r, c: (c == 0) & (r != 0)),
            "itself": of_patches(lambda r, c: (r == 0) & (c == 0)),
        }
        classes = self.labels[:1] == ["class"]
        for name, keys in {"class token": range(classes), "registers": range(classes, prefix)}.items():
            if len(keys):
                table = torch.full((rows * columns + prefix, len(keys)), -1)
                table[prefix:] = torch.tensor(list(keys))
                found[name] = lambda tokens, device, table=table: table[None].to(device)
        if rows * columns == 1:
            raise UserError("The images have one patch, so there is nothing that a head could look at.")
        return {name: keys for name, keys in found.items() if bool((keys(0, torch.device("cpu")) >= 0).any())}

    def answers(self, copies: int) -> Tensor:
        found = self.model(self.images[:1].expand(copies, -1, -1, -1))[:, None]
        return (found.float() / self.temperature).log_softmax(-1) if self.names else found

    def reader(self) -> Tensor:
        from .evaluate.explain import reader

        model: Any = self.model
        sized: list[Tensor] = []

        def run() -> None:
            sized.append(layer_weights(model, lambda: model(self.images[:1])))

        with torch.no_grad():
            return reader(model, run, sized)[None].cpu()

    @torch.no_grad()
    def effects(self, scope: Scope, group: int) -> tuple[Tensor, str]:
        """Of the whole model, patches of pixels are hidden; in a layer or head, edges are cut."""
        from .evaluate.explain import hiding_effect

        tokens, (rows, columns) = len(self.labels), self.grid or (1, 1)
        if scope is not None:
            apart = None if self.names else lambda whole, found: 1 - F.cosine_similarity(whole, found, dim=-1)
            found = hidden_tokens(self.model, self.answers, tokens, scope=scope, group=group, apart=apart)
            unit = "nats by which the answer moves" if self.names else "1 - cosine of the pooled vector"
            return found.mT, f"Effect: {unit} when no other token sees this one there."
        model: Any = self.model
        whole = self.whole[:1]

        def value(images: Tensor) -> Tensor:
            found = torch.cat([model(part) for part in images.split(group)])
            if not self.names:
                return F.cosine_similarity(found, whole, dim=-1).double().cpu()
            return (found.double().cpu() / self.temperature).log_softmax(-1)[:, int(whole.argmax())]

        found = torch.full((1, tokens), float("nan"), dtype=torch.float64)
        found[0, tokens - rows * columns :] = hiding_effect(
            model, self.images[0], 0, batch_size=group, value=value
        ).flatten()
        what = (
            f"log-probability of {self.names[int(whole.argmax())]!r} (nats)"
            if self.names
            else "cosine of the pooled vector"
        )
        return (
            found,
            f"Effect: how far the {what} falls when squares of patches are painted in the image's mean colour.",
        )

    def passes(self, scope: Scope) -> int:
        rows, columns = self.grid or (1, 1)
        if scope is not None:
            return len(self.labels) - 1
        places = min(256, rows * columns)
        return places if len(self.images) < 2 or not self.names else places + len(self.images) * (places + 12)

    @torch.no_grad()
    def maps(self) -> tuple[list[Table], list[Square]]:
        """Of several images, how far the rollout agrees with the effects, and what hiding by either costs."""
        from .evaluate.explain import explain

        if len(self.images) < 2 or not self.names:
            return [], []
        model: Any = self.model
        with progress("explaining images", len(self.images), "images") as step:
            found = []
            for image in self.images:
                found.append(explain(model, image, temperature=self.temperature))
                step(1)
        r = torch.tensor([one.correlation for one in found], dtype=torch.float64)
        r = r[~r.isnan()]
        self.extra["correlations"] = r.tolist()
        rows: list[list[Any]] = []
        if len(r):
            low, middle, high = r.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=r.dtype)).tolist()
            rows.append(["rank correlation of rollout and effect", middle, low, high])
        for name in ("rollout", "effect", "random"):
            lost = torch.tensor([one.deleted[name] for one in found], dtype=torch.float64)
            low, middle, high = lost.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=lost.dtype)).tolist()
            rows.append([f"nats lost by hiding a fifth of the patches, by {name}", middle, low, high])
        columns = ["", "median", "lower quarter", "upper quarter"]
        return [Table(f"Weights and effects over {len(found)} images", columns, rows)], []

    def depths(self) -> Depths:
        model: Any = self.model

        def decode(x: Tensor) -> Tensor:
            return model.head(model.pre_logits(model.pooled(x)))

        found = depth_lens(model, self.run, decode)
        rows: list[list[Any]] = []
        if not self.names:
            curve = [float(F.cosine_similarity(x, self.whole, dim=-1).mean()) for x in found]
            table = Table(
                "Likeness to the final pooled vector", ["depth", "mean cosine"], [[d, v] for d, v in enumerate(curve)]
            )
            return Depths(table, {"likeness": curve}, "mean cosine")
        own = self.whole.argmax(-1)
        curves: dict[str, list[float]] = {"same class as at the end": [], "probability of it": []}
        for depth, logits in enumerate(found):
            p = (logits.double() / self.temperature).softmax(-1)
            same, chance = float((p.argmax(-1) == own).float().mean()), float(p.gather(1, own[:, None]).mean())
            curves["same class as at the end"].append(same)
            curves["probability of it"].append(chance)
            first = int(p[0].argmax())
            rows.append([depth, self.names[first], float(p[0, first]), float(p[0, own[0]]), same, chance])
        columns = [
            "depth", f"class of {Path(self.files[0]).name}", "p", f"p of {self.names[int(own[0])]}",
            f"same class, of {len(self.files)} images", "p of it, mean",
        ]  # fmt: skip
        return Depths(Table("What each depth says", columns, rows), curves, "share or probability")

    def direct(self, against: str | None, answer: str | None) -> tuple[Direct, str] | None:
        """To the logit of a class of the first image, by default the model's own, less that of another or the mean."""
        if not self.names:
            return super().direct(against, answer)
        model: Any = self.model
        right = int(self.whole[0].argmax()) if answer is None else self._class(answer, "--answer")
        wrong = None if against is None else self._class(against, "--against")

        def score() -> Tensor:
            logits = model(self.images[:1])[0]
            return logits[right] - (logits.mean() if wrong is None else logits[wrong])

        self.told_apart(right, wrong, lambda number: repr(self.names[number]))
        less = "the mean of all" if wrong is None else f"that of {self.names[wrong]!r}"
        return direct(model, score), f"logit of {self.names[right]!r} less {less}"

    def contrast(self, against: str | None, answer: str | None) -> Contrast:
        if len(self.images) != 2:
            raise UserError(
                f"{len(self.images)} images were given, but patching takes two: a clean and a corrupted one."
            )
        if not self.names:
            raise UserError("This model has no classes to tell two images apart by; give a classifier.")
        own = self.whole.argmax(-1).tolist()
        right = own[0] if answer is None else self._class(answer, "--answer")
        wrong = own[1] if against is None else self._class(against, "--against")
        self.told_apart(right, wrong, lambda number: repr(self.names[number]))
        about = f"logit of {self.names[right]!r} minus that of {self.names[wrong]!r}"
        return Contrast(
            self.images[:1], self.images[1:], lambda logits: logits[0, right] - logits[0, wrong], about, self.labels
        )

    def _class(self, name: str, option: str) -> int:
        from ..core.errors import nearest
        from ..core.files import few

        if name not in self.names:
            raise UserError(
                f"{option} is '{name}'{nearest(name, self.names)}, but the classes are {few(self.names, 12)}."
            )
        return self.names.index(name)


def in_training(model: Any, images: Tensor) -> ImageSubject:
    """Images of a model that is being trained."""
    labels, grid = _labels(model, images)
    return ImageSubject(model, [], labels, "", grid, images=images)


def _labels(model: Any, images: Tensor) -> tuple[list[str], tuple[int, int]]:
    """Names of the tokens, and rows and columns of the patches."""
    config, (rows, columns) = model.config, model.grid(images)
    labels = ["class"] * config.class_token + [f"register {n}" for n in range(1, config.registers + 1)]
    return labels + [f"{r},{c}" for r in range(rows) for c in range(columns)], (rows, columns)


def open_subject(name: str, inputs: Sequence[str], options: Any) -> ImageSubject:
    """An image model, with images of files and folders.

    Raises:
        UserError: there is no such model, or no image that can be read.
    """
    from .classify import Classifier, open_model
    from .data.folders import collect

    if options.prompts:
        raise UserError("--prompts are for language models of text, but this is a model of images; leave them out.")
    if options.structure or options.chain:
        raise UserError("--structure and --chain are for proteins, but this is a model of images; leave them out.")
    if not inputs:
        raise UserError(f"'{name}' is a model of images, but no image was given; name files or a folder.")
    files, problems = collect(inputs)
    if problems:
        raise UserError(problems[0])
    if len(files) > MOST:
        raise UserError(f"{len(files):,} images were given, but at most {MOST} are looked at; name fewer.")
    model, temperature = open_model(name)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        classifier = Classifier(model.eval().to(device), temperature, device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None
    pixels = [classifier.read(file) for file in files]
    images = classifier.inputs(pixels)
    config = model.config
    labels, (rows, columns) = _labels(model, images)
    core = config.transformer
    about = [
        f"{name}: {core.depth} layers of {core.heads} heads, width {core.dim}",
        f"{len(files)} image{'s' if len(files) > 1 else ''}, {rows} x {columns} patches (labels are row, column)"
        + ("" if config.classes else "; a backbone without classes: measured is the likeness of its pooled vectors"),
    ]
    return ImageSubject(
        model, about, labels, options.measure or "", (rows, columns), {"image": pixels[0].permute(1, 2, 0)},
        images=images, names=classifier.names if config.classes else [], files=files, temperature=temperature,
    )  # fmt: skip
