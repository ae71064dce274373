"""What a language model lends to `triune lens`: texts, or random symbols that repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.files import few
from ..core.lens.decode import Direct, depth_lens, direct
from ..core.lens.scores import Pattern, duplicate, first, induction, itself, previous
from ..core.subject import Contrast, Depths, Subject, Table, only_real, unlike
from .fewshot import LABELS, PATTERNS, SHOTS, prompts

if TYPE_CHECKING:
    from .model import LanguageModel
    from .tokenizer import Tokenizer

SEGMENT, COPIES, ROWS = 50, 2, 4
"""Random tokens that are repeated, how often they stand there, and rows of them (Crosbie and Shutova 2024; the stripe
protocol of TransformerLens has 50 twice)."""
SHOWN = 24
"""Positions of a text in the table of depths."""


@dataclass
class TextSubject(Subject):
    """A language model with texts, padded on the left where their lengths differ.

    Args:
        tokenizer: of the model.
        ids: int `[batch, tokens]`.
        valid: bool `[batch, tokens]`, None where all are real.
        counted: bool `[batch, tokens - 1]`, the next tokens that are measured.
    """

    tokenizer: Any = None
    ids: Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.long))
    valid: Tensor | None = None
    counted: Tensor | None = None
    measures: tuple[str, ...] = ("log-probability", "accuracy")

    def run(self) -> Tensor:
        """Logits `[batch, tokens, vocabulary]`."""
        return self.model(self.ids, valid=self.valid)

    def score(self) -> dict[str, Tensor]:
        """Of the next token: mean log-probability in nats, and the share that is foretold."""
        logits, then = self.run()[:, :-1], self.ids[:, 1:]
        here = torch.ones_like(then, dtype=torch.bool) if self.counted is None else self.counted
        # Only the measured places: a softmax over the vocabulary is a large part of a small model's time.
        logits, then = logits[here], then[here]
        chances = logits.float().log_softmax(-1).gather(1, then[:, None])
        return {"log-probability": chances.mean(), "accuracy": (logits.argmax(-1) == then).float().mean()}

    def patterns(self) -> dict[str, Pattern]:
        ids = self.ids.clone()
        found = {
            "induction": induction(ids), "previous": previous, "duplicate": duplicate(ids), "first": _first(self.valid),
            "itself": itself,
        }  # fmt: skip
        kept = {name: only_real(pattern, self.valid) for name, pattern in found.items()}
        none = [name for name, keys in kept.items() if not bool((keys(ids.shape[1], ids.device) >= 0).any())]
        return {name: pattern for name, pattern in kept.items() if name not in none}

    def visible(self) -> Tensor | None:
        return None if self.valid is None else self.valid[:, :, None] & self.valid[:, None]

    def answers(self, copies: int) -> Tensor:
        logits = self.model(self._first_text().expand(copies, -1))
        return logits.float().log_softmax(-1)

    def depths(self) -> Depths:
        """The next token by depth: what is likeliest at the end, and how likely the final answer is on the way."""
        model = self.model
        found = depth_lens(model, self.run, lambda x: self._decoded(model, x))
        here = torch.ones_like(self.ids[:, 1:], dtype=torch.bool) if self.counted is None else self.counted
        then = self.ids[:, 1:][here]
        final = found[-1][0, -1].argmax()
        rows, curves = [], {"of the answer at the end": [], "of the next tokens, mean": []}
        for depth, logits in enumerate(found):
            at_end = logits[0, -1].float().log_softmax(-1)
            best = at_end.topk(3).indices.tolist()
            rank = int((at_end > at_end[final]).sum()) + 1
            mean = float(logits[:, :-1][here].float().log_softmax(-1).gather(1, then[:, None]).mean())
            curves["of the answer at the end"].append(float(at_end[final]))
            curves["of the next tokens, mean"].append(mean)
            names = ", ".join(self.name(token) for token in best)
            rows.append([depth, names, float(at_end[best[0]].exp()), rank, float(at_end[final].exp()), mean])
        table = Table(
            f"What each depth says after {self._context()}",
            ["depth", "likeliest", "p", f"rank of {self.name(int(final))}", "p of it", "log p of all next tokens"],
            rows,
        )  # fmt: skip
        return Depths(table, curves, "log-probability (nats)")

    @staticmethod
    def _decoded(model: Any, x: Tensor) -> Tensor:
        """Logits from the core's output, as `LanguageModel.hidden` and `logits` go on."""
        x = x if model.narrow is None else model.narrow(x)
        factor = model.config.logit_scale
        return model.logits(x if factor == 1 else x * factor)

    def _context(self) -> str:
        return "…" + "".join(self.labels[-6:]) if len(self.labels) > 6 else "".join(self.labels)

    def name(self, token: int) -> str:
        """A token in quotation marks."""
        return repr(self.tokenizer.decode([token], skip_special=False))

    def direct(self, against: str | None, answer: str | None) -> tuple[Direct, str]:
        """To the logit of a token at the end of the first text, by default the likeliest, less that of another or the
        mean of all.
        """
        ids = self._first_text()
        with torch.no_grad():
            said = int(self.model(ids)[0, -1].argmax())
        right = said if answer is None else self._one(answer, "--answer")
        wrong = None if against is None else self._one(against, "--against")

        def score() -> Tensor:
            logits = self.model(ids)[0, -1]
            return logits[right] - (logits.mean() if wrong is None else logits[wrong])

        self.told_apart(right, wrong, self.name)
        less = "the mean of all" if wrong is None else f"that of {self.name(wrong)}"
        return direct(self.model, score), f"logit of {self.name(right)} less {less}"

    def _first_text(self) -> Tensor:
        """The first text without padding, `[1, tokens]`."""
        return self.ids[:1, 0 if self.valid is None else int((~self.valid[0]).sum()) :]

    def contrast(self, against: str | None, answer: str | None) -> Contrast:
        """Clean and corrupted text; by default the answer and its rival are what the model says after each."""
        if len(self.ids) != 2:
            raise UserError(f"{len(self.ids)} texts were given, but patching takes two: a clean and a corrupted one.")
        if self.valid is not None:
            long, short = ([self.name(t) for t in row[real].tolist()] for row, real in zip(self.ids, self.valid))
            raise UserError(
                f"The clean text has {len(long)} tokens and the corrupted one {len(short)}, but they must have equally "
                f"many, because values are put in at the same positions; exchange single words ({few(long, 12)} beside "
                f"{few(short, 12)})."
            )
        changed = unlike(self.ids[0].tolist(), self.ids[1].tolist())
        if not changed:
            raise UserError("The clean and the corrupted text are equal, so there is nothing to bring back.")
        with torch.no_grad():
            said = self.run()[:, -1].argmax(-1).tolist()
        right = said[0] if answer is None else self._one(answer, "--answer")
        wrong = said[1] if against is None else self._one(against, "--against")
        self.told_apart(right, wrong, self.name)
        labels = [f"*{label}" if at in changed else label for at, label in enumerate(self.labels)]
        about = f"log-probability of {self.name(right)} minus that of {self.name(wrong)}, at the end"
        return Contrast(
            self.ids[:1], self.ids[1:], lambda logits: logits[0, -1, right] - logits[0, -1, wrong], about, labels
        )

    def _one(self, word: str, option: str) -> int:
        ids = self.tokenizer.encode(word).tolist()
        if len(ids) != 1:
            raise UserError(
                f"{option} is {word!r}, which is {len(ids)} tokens, but must be one; words often begin with a space."
            )
        return ids[0]


def _first(valid: Tensor | None) -> Pattern:
    """The first real token, of later ones."""
    if valid is None:
        return first
    start = (~valid).sum(1)

    def keys(tokens: int, device: torch.device) -> Tensor:
        later = torch.arange(tokens, device=device)[None] > start[:, None].to(device)
        return torch.where(later, start[:, None].to(device), -1)[..., None]

    return keys


def in_training(model: LanguageModel, seed: int = 0) -> TextSubject:
    """Random tokens that repeat, for a model that is being trained; measured is how well it foretells the copies."""
    ids, counted = repeats(torch.arange(model.config.vocab_size), [], model.config.transformer.context, seed)
    place = model.embedding.weight.device
    return TextSubject(model, [], [""] * ids.shape[1], ids=ids.to(place), counted=counted.to(place))


def repeats(usable: Tensor, start: list[int], context: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of random tokens, each segment twice behind `start`: ids `[rows, tokens]`, and which next tokens are known,
    bool `[rows, tokens - 1]`.

    Raises:
        UserError: the context is too short.
    """
    generator = torch.Generator().manual_seed(seed)
    segment = min(SEGMENT, (context - len(start)) // COPIES, len(usable) // 2)
    if segment < 4:
        raise UserError(f"The model reads {context} tokens, too few for a segment that repeats; give a text.")
    drawn = [usable[torch.randperm(len(usable), generator=generator)[:segment]].tolist() for _ in range(ROWS)]
    ids = torch.tensor([start + tokens * COPIES for tokens in drawn])
    counted = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
    counted[:, len(start) + segment :] = True  # the first token of the copy cannot be known
    return ids, counted


@dataclass
class FewShotSubject(TextSubject):
    """A language model with prompts; heads are scored on random tokens that repeat.

    Args:
        scored: the model with these tokens.
        labels_of: the first tokens of `LABELS`.
        right: int `[prompts]`, which of them is right.
    """

    scored: TextSubject | None = None
    labels_of: tuple[int, int] = (0, 1)
    right: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    measures: tuple[str, ...] = ("accuracy", "log-probability")

    def score(self) -> dict[str, Tensor]:
        """Of the two labels: how often the right one is likelier, and the log of its share in nats."""
        last = self.model.hidden(self.ids, valid=self.valid)[:, -1:]
        chances = self.model.logits(last)[:, 0, list(self.labels_of)].float().log_softmax(-1)
        own = chances.gather(1, self.right[:, None]).mean()
        return {"accuracy": (chances.argmax(-1) == self.right).float().mean(), "log-probability": own}

    def scores(self) -> dict[str, Tensor]:
        assert self.scored is not None
        return self.scored.scores()


def few_shot(model: Any, tokenizer: Any, name: str, scored: TextSubject, options: Any) -> FewShotSubject:
    """The prompts of a pattern for a model.

    Raises:
        UserError: the model reads too little, or does not tell the labels apart by their first token.
    """
    found = prompts(PATTERNS[name], options.seed)
    rows = [tokenizer.beginning + tokenizer.encode(text).tolist() for text, _ in found]
    longest = max(map(len, rows))
    if longest > model.config.transformer.context:
        raise UserError(
            f"--prompts {name} take {longest} tokens, but the model reads {model.config.transformer.context}; leave "
            "them out."
        )
    labels = [tokenizer.encode(label).tolist()[:2] for label in LABELS]
    if labels[0][:1] == labels[1][:1]:
        raise UserError(f"The labels {few(LABELS)} begin with the same token for this model; leave --prompts out.")
    device, pad = model.embedding.weight.device, tokenizer.eos_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    starts = torch.tensor([longest - len(row) for row in rows], device=device)
    valid = torch.arange(longest, device=device) >= starts[:, None]
    shape = " ".join(PATTERNS[name])
    about = [
        scored.about[0],
        f"{len(rows)} prompts of {SHOTS} examples of `{shape}` (Foo) and random letters (Bar), seed {options.seed}; "
        f"chance 0.5; the first is {found[0][0]!r}",
        "heads are scored on random tokens that repeat",
    ]
    names = [tokenizer.decode([token], skip_special=False) for token in rows[0]]
    return FewShotSubject(
        model, about, names, options.measure or "", tokenizer=tokenizer, ids=ids, right=torch.tensor(
            [right for _, right in found], device=device
        ), valid=valid if bool(starts.any()) else None, scored=scored, labels_of=(labels[0][0], labels[1][0]),
    )  # fmt: skip


def open_subject(name: str, inputs: Sequence[str], options: Any) -> TextSubject:
    """A language model and texts, or files of them; without any, random tokens that repeat.

    Raises:
        UserError: there is no such model, or a text is too long or too short.
    """
    from .generate import load

    if options.structure or options.chain:
        raise UserError(
            "--structure and --chain are for proteins, but this is a language model of text; leave them out."
        )
    model, tokenizer = load(name, options.device)
    model.eval()
    config = model.config.transformer
    about = [f"{name}: {config.depth} layers of {config.heads} heads, width {config.dim}"]
    if options.prompts:
        if inputs:
            raise UserError("--prompts make texts, but a text is given as well; leave one out.")
        wanted, options.measure = options.measure, None
        scored = _repeats(model, tokenizer, about, options)
        options.measure = wanted
        return few_shot(model, tokenizer, options.prompts, scored, options)
    if not inputs:
        return _repeats(model, tokenizer, about, options)
    texts = [_text(word, about) for word in inputs]
    rows = [tokenizer.beginning + tokenizer.encode(text).tolist() for text in texts]
    for text, row in zip(texts, rows):
        if not 2 <= len(row) <= config.context:
            raise UserError(
                f"The text {text[:40]!r} has {len(row):,} tokens, but must have from 2 to {config.context:,}; give "
                f"{'more of it' if len(row) < 2 else 'a part of it'}."
            )
    longest = max(map(len, rows))
    pad = tokenizer.eos_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.embedding.weight.device)
    starts = torch.tensor([longest - len(row) for row in rows], device=ids.device)
    valid = torch.arange(longest, device=ids.device) >= starts[:, None]
    about.append(f"{len(rows)} text{'s' if len(rows) > 1 else ''} of {', '.join(str(len(row)) for row in rows)} tokens")
    padded = bool(starts.any())
    return TextSubject(
        model, about, [_shown(tokenizer, token) for token in rows[0]], options.measure or "", tokenizer=tokenizer,
        ids=ids, valid=valid if padded else None, counted=valid[:, :-1] if padded else None,
    )  # fmt: skip


def _repeats(model: LanguageModel, tokenizer: Tokenizer, about: list[str], options: Any) -> TextSubject:
    """Rows of random tokens, each segment twice behind the token that begins a text."""
    special = set(tokenizer.backend.get_added_tokens_decoder())
    start = tokenizer.beginning or ([tokenizer.eos_id] if tokenizer.eos_id is not None else [])
    usable = torch.tensor([token for token in range(tokenizer.vocab_size) if token not in special])
    ids, counted = repeats(usable, start, model.config.transformer.context, options.seed)
    rows, segment = ids.tolist(), (ids.shape[1] - len(start)) // COPIES
    ids, counted = (x.to(model.embedding.weight.device) for x in (ids, counted))
    about.append(
        f"{ROWS} rows of {segment} random tokens (seed {options.seed}), each {COPIES} times; measured from the second "
        "token of the second time on"
    )
    return TextSubject(
        model, about, [_shown(tokenizer, token) for token in rows[0]], options.measure or "accuracy",
        tokenizer=tokenizer, ids=ids, counted=counted, extra={"ids": rows},
    )  # fmt: skip


def _text(word: str, about: list[str]) -> str:
    from .data.reading import text_of

    text, read = text_of(word, "write its text into a file of its own")
    if read:
        about.append(f"'{word}' is a file, and its content is the text")
    return text


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special=False)
