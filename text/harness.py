"""Tasks of lm-evaluation-harness on a model of ours, in this process. Imported only where that library is installed."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # its bars; ours say the same

from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

from ..core.errors import UserError, nearest
from ..core.work import progress
from .likelihood import check, first_token, log_likelihoods, windows
from .model import LanguageModel
from .sampling import SamplingConfig, generate
from .tokenizer import Tokenizer

BOOTSTRAPS = 1000
"""Resamples of the standard error of figures that are no means."""
NEW_TOKENS = 256
"""Tokens of an answer, where the task does not say how many."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the tokens of an answer."""


class CoreModel(TemplateLM):
    """A language model with its tokenizer as the harness asks it.

    Args:
        model: causal, in evaluation mode.
        tokenizer: as it was trained with.
        batch_size: inputs of a batch, at most.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int) -> None:
        super().__init__()
        self.model, self.words, self.size = model, tokenizer, batch_size
        self.context = model.config.transformer.context
        self.cut = 0
        """Contexts whose beginning was cut off."""

    @property
    def eot_token_id(self) -> int:
        return first_token(self.words) if self.words.eos_id is None else self.words.eos_id

    @property
    def prefix_token_id(self) -> int:
        return first_token(self.words)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text, behind what stands before every text in training."""
        start = [] if add_special_tokens is False else self.words.beginning
        return [*start, *self.words.encode(string).tolist()]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(before, after) for _, before, after in requests]
        self.cut += check(pairs, self.context)
        found = log_likelihoods(self.model, pairs, self.size)
        answers = [(one.nats, one.greedy) for one in found]
        for (texts, _, _), answer in zip(requests, answers):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The logarithm of the probability of each whole text."""
        first, pairs, texts = self.prefix_token_id, [], []
        for number, request in enumerate(requests):
            held = windows(self.words.encode(request.args[0]).tolist(), first, self.context)
            pairs += held
            texts += [number] * len(held)
        totals = [0.0] * len(requests)
        for number, one in zip(texts, log_likelihoods(self.model, pairs, self.size)):
            totals[number] += one.nats
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to a stop of the task or the end of a text."""
        found: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        with progress("writing", len(requests), "answers") as advance:
            for numbers in groups.values():
                options = dict(requests[numbers[0]].args[1])
                prompts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
                order = sorted(numbers, key=lambda number: -len(prompts[number]))
                for start in range(0, len(order), self.size):
                    some = order[start : start + self.size]
                    found |= dict(zip(some, self._write([prompts[number] for number in some], dict(options))))
                    advance(len(some))
        return [found[number] for number in range(len(requests))]

    def _write(self, prompts: list[list[int]], options: dict[str, Any]) -> list[str]:
        from .generate import Continuation, run_steps

        until = options.pop("until", None) or []
        stops = [until] if isinstance(until, str) else list(until)
        most = [options.pop(name, None) for name in LENGTHS]
        length = int(next((value for value in most if value is not None), NEW_TOKENS))
        room = self.context - length
        if room < 1:
            raise UserError(
                f"A task asks for {length:,} new tokens, but the model reads {self.context:,} at most; "
                "take another task, or change max_gen_toks in its generation_kwargs."
            )
        self.cut += sum(len(prompt) > room for prompt in prompts)
        prompts = [prompt[-room:] or [self.prefix_token_id] for prompt in prompts]
        texts = [Continuation(self.words, stops, prompt) for prompt in prompts]
        ends = self.words.end_ids
        run_steps(generate(self.model, prompts, length, _sampling(options), 0, ends), texts, ends, False)
        for text in texts:
            text.flush()
        return [text.text for text in texts]


def _sampling(options: dict[str, Any]) -> SamplingConfig:
    """How tokens are drawn: greedily, unless the task asks for more."""
    sampled = options.pop("do_sample", None)
    temperature = float(options.pop("temperature", 0.0 if not sampled else 1.0))
    known = {name: options.pop(name) for name in ("top_k", "top_p", "min_p") if options.get(name) is not None}
    options = {name: value for name, value in options.items() if value is not None}
    if options:
        raise UserError(f"A task asks for {', '.join(sorted(options))} in generation, which is not known here.")
    if sampled is False or temperature == 0:
        return SamplingConfig(0.0)
    return SamplingConfig(temperature, **known)


def run(
    model: LanguageModel, tokenizer: Tokenizer, tasks: Sequence[str], folders: Sequence[str] = (),
    shots: int | None = None, limit: int | None = None, batch_size: int = 64,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """Figures of tasks: a row each with `task`, `figure`, `value`, `error` (standard, None where not known), `chance`
    (of choosing among the answers, None where nothing is chosen) and `examples`; and sentences that a reader needs.

    Args:
        model: causal, in evaluation mode.
        tokenizer: of the model.
        tasks: names, or YAML files that describe one.
        folders: where further descriptions of tasks lie.
        shots: examples before each question; None leaves them to the task.
        limit: examples of each task, the first; None for all.
        batch_size: inputs of a batch, at most.

    Raises:
        UserError: a task is not known, or its data cannot be had.
    """
    from lm_eval import evaluator  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # It asks git for the commit of the present folder, which prints "fatal" where there is none.
    evaluator.get_git_commit_hash = lambda: None
    names, places = [], list(folders)
    for task in tasks:
        path = Path(task)
        if path.suffix in (".yaml", ".yml"):
            names.append(name_in(path))
            places.append(str(path.parent))
        else:
            names.append(task)
    # Its own tasks are thousands of files, which take seconds to list.
    own = any(Path(task).suffix not in (".yaml", ".yml") for task in tasks)
    manager = TaskManager(include_path=list(dict.fromkeys(places)) or None, include_defaults=own)
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(
                f"The task '{name}' is not known to lm-evaluation-harness{nearest(name, manager.all_tasks)}; "
                "`lm-eval ls tasks` lists all, --include FOLDER adds your own."
            )
    asked = CoreModel(model, tokenizer, batch_size)
    try:
        found = evaluator.simple_evaluate(
            asked, tasks=names, num_fewshot=shots, limit=limit, task_manager=manager, bootstrap_iters=BOOTSTRAPS
        )
    except UserError:
        raise
    except (OSError, ConnectionError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"The tasks {', '.join(names)} cannot be run ({line}); see whether their data can be fetched from here, or "
            "give the YAML file of a task whose data_files lie on this machine."
        ) from error
    assert found is not None
    return rows_of(found), [_cut(asked)] if asked.cut else []


def _cut(asked: CoreModel) -> str:
    return (
        f"{asked.cut:,} inputs are longer than the {asked.context:,} tokens that the model reads; they lose their start"
    )


def name_in(path: Path) -> str:
    """The task that a YAML file describes. Its tags (`!function`) mean something to the harness alone.

    Raises:
        UserError: it cannot be read, or describes no task.
    """
    import re

    from ..core.files import read_bytes

    text = read_bytes(path, 1_000_000).decode("utf-8", "replace")
    found = re.search(r"^task:\s*['\"]?([^\s'\"#]+)", text, re.M)
    if found is None:
        raise UserError(f"'{path}' describes no task of lm-evaluation-harness: no line of it begins with `task:`.")
    return found[1]


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of what the harness returns, in its order; those of groups of tasks too."""
    rows = []
    for task, results in found["results"].items():
        counts = found.get("n-samples", {}).get(task, {})
        for key, value in results.items():
            figure, _, kept = key.partition(",")
            if figure.endswith("_stderr") or not isinstance(value, int | float) or figure in ("alias", "sample_len"):
                continue
            error = results.get(f"{figure}_stderr,{kept}")
            rows.append({
                "task": task, "figure": figure if kept in ("", "none") else f"{figure} ({kept})", "value": float(value),
                "error": float(error) if isinstance(error, int | float) else None,
                "chance": _chance(found, task) if figure.startswith("acc") else None,
                "examples": counts.get("effective", counts.get("original")),
            })  # fmt: skip
    return rows


def _chance(found: dict[str, Any], task: str) -> float | None:
    """The accuracy of choosing at random, of a task that chooses among answers."""
    if found.get("configs", {}).get(task, {}).get("output_type") != "multiple_choice":
        return None
    samples = found.get("samples", {}).get(task) or []
    choices = [len(sample["arguments"]) for sample in samples if sample.get("arguments")]
    return sum(1 / count for count in choices) / len(choices) if choices else None
