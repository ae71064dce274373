"""`triune text generate`: continue prompts with a trained language model."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError
from ..core.options import Parser, whole
from ..core.training.run.folder import model_folder

if TYPE_CHECKING:
    import torch

    from .data.messages import Message
    from .decode import Decoder
    from .model import LanguageModel
    from .sampling import SamplingConfig
    from .tokenizer import Tokenizer


def parser(prog: str = "triune text generate") -> argparse.ArgumentParser:
    """The options of `triune text generate`."""
    p = Parser(
        prog=prog,
        may_be_empty=("--prompt",),
        description="Continue text with a trained language model, or write what an encoder-decoder makes of it. One "
        "prompt is shown as it grows; several at the end.",
    )
    p.add_argument(
        "run",
        metavar="CHECKPOINT",
        help="a run, a model folder of triune or Hugging Face, a name on the hub, a GGUF file",
    )
    p.add_argument("--prompt", action="append", default=[], help="text to continue; repeat it for a batch")
    p.add_argument(
        "--chat", action="store_true",
        help="take each prompt as a question, by the model's chat template; without a prompt, talk: one question a "
        "line from the terminal or standard input, with all that was said before",
    )  # fmt: skip
    p.add_argument("--system", help="with --chat: what the model is told before the conversation")
    p.add_argument(
        "--conversation", type=Path,
        help="with --chat: a JSON file of what was said so far ([{role, content}, …]), before the first question",
    )  # fmt: skip
    p.add_argument("--think", action="store_true", help="with --chat: let a model think first, if its template can")
    p.add_argument("--prompt-file", type=Path, help="a UTF-8 file to continue")
    p.add_argument("--max-tokens", type=int, default=300, help="new tokens of each prompt (default 300)")
    p.add_argument("--temperature", type=float, help="0 is greedy, 1 the model's own chances (default 0.8)")
    p.add_argument("--greedy", action="store_true", help="always the most likely token")
    p.add_argument("--top-k", type=int, help="draw among the k most likely tokens")
    p.add_argument("--top-p", type=float, help="draw among the most likely tokens that sum to p")
    p.add_argument("--min-p", type=float, help="draw among tokens at least p times as likely as the likeliest")
    p.add_argument("--beams", type=int, default=1, help="of an encoder-decoder: targets that are followed (default 1)")
    p.add_argument("--stop", action="append", default=[], help="end before this text; repeat it for several")
    p.add_argument("--seed", type=int, help="the same seed gives the same text")
    p.add_argument("--no-cache", action="store_true", help="recompute everything at each step (slow; for comparison)")
    p.add_argument(
        "--weights", default="float32", choices=("float32", "bfloat16", "float16", "int8", "int4"),
        help="what weights are kept in, whatever the file has; of 16 bits they take half of the memory, and on a CPU "
        "those of 8 or 4 bits are faster (135 million parameters on two cores: int4 twice, with --compile 2.5 times), "
        "at a small loss (default float32: the numbers of the original)",
    )  # fmt: skip
    p.add_argument(
        "--compile", action="store_true",
        help="make the steps behind the prompt one compiled program: half a minute of waiting the first time, then "
        "1.2 to 1.5 times faster on a CPU; worth it from some hundred tokens on",
    )  # fmt: skip
    p.add_argument(
        "--lookup", type=whole(1, 64), metavar="N",
        help="guess up to N tokens from what followed the last words before, and read them in one pass: the same text, "
        "sooner where it repeats itself or its prompt (summaries, code); one prompt after the other",
    )  # fmt: skip
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    p.add_argument("--json", action="store_true", help="print one JSON list of {prompt, text, tokens}")
    return p


class Continuation:
    """The text of one prompt as its tokens arrive; holds back what may yet become a stop string.

    Args:
        tokenizer: of the model.
        stops: texts to end before.
        after: the tokens of the prompt, since a word may begin with the space behind them.
        lead: what is not part of the text when it begins with it, such as a space that a chat template writes.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[str], after: Sequence[int] = (), lead: str = "") -> None:
        self.stream, self.stops, self.lead = tokenizer.stream(after), stops, lead
        self.text, self.shown, self.tokens, self.done = "", 0, 0, False

    def push(self, token: int) -> str:
        """Adds a token; returns the text that may now be shown."""
        self.tokens += 1
        self.text += self.stream.push(token)
        if self.lead and self.lead.startswith(self.text):
            if self.text == self.lead:
                self.text = self.lead = ""
            return ""
        self.text, self.lead = self.text.removeprefix(self.lead), ""
        found = [at for at in (self.text.find(stop, max(0, self.shown)) for stop in self.stops) if at >= 0]
        if found:
            self.text, self.done = self.text[: min(found)], True
            return self._show(len(self.text))
        return self._show(len(self.text) - self._possible_stop())

    def flush(self) -> str:
        """The rest, when no token follows."""
        if not self.done:
            self.text += self.stream.flush()
        return self._show(len(self.text))

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that a stop string starts with."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for size in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stops):
                return size
        return 0

    def _show(self, end: int) -> str:
        part, self.shown = self.text[self.shown : end], max(self.shown, end)
        return part


def load(
    name: str | Path, device: str | None = None, dtype: str | torch.dtype = "float32"
) -> tuple[LanguageModel, Tokenizer]:
    """A language model, ready to generate, and its tokenizer, from a run or anything that `pretrained.load` opens.

    Raises:
        UserError: there is no model or no tokenizer, or the model is an encoder.
    """
    import torch

    from .checkpoints.pretrained import load as load_pretrained
    from .model import LanguageModel

    path = Path(name).expanduser()
    is_run = path.is_dir() and not (path / "config.json").is_file()
    pretrained = load_pretrained(str(model_folder(path, "text") if is_run else name), dtype)
    model, tokenizer = pretrained.model, pretrained.companion
    if not isinstance(model, LanguageModel):
        raise UserError(f"'{name}' is an encoder, which does not write text.")
    if tokenizer is None:
        raise UserError(
            f"'{name}' has no tokenizer that can be read (a tokenizer.json, vocab.json with merges.txt, or a BPE "
            "inside a GGUF file); put the tokenizer.json of this model beside it."
        )
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return model.to(chosen), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None


def compress(model: LanguageModel, weights: str) -> None:
    """Replaces the weights by ones of fewer bits, in place; the head, whose errors would be the model's, keeps 8.

    Args:
        model: on a CPU, to generate only.
        weights: `int8` or `int4`; see `core/packed.py`.
    """
    from ..core.packed import PackedLinear, pack

    pack(model.transformer, weights)  # type: ignore[arg-type]
    model.head = PackedLinear(model.head, "int8")  # type: ignore[assignment]


def main(args: list[str], prog: str = "triune text generate") -> int:
    """Runs `triune text generate` and returns its exit code."""
    options = parser(prog).parse_args(args)
    if options.max_tokens < 1:
        raise UserError(f"--max-tokens is {options.max_tokens}, but must be at least 1.")
    if options.beams < 1:
        raise UserError(f"--beams is {options.beams}, but must be at least 1.")
    from .seq2seq.generate import folder_of, write

    if folder := folder_of(options.run):
        return write(folder, options, parser().parse_args([options.run]))
    if options.beams > 1:
        raise UserError("--beams is given, but only an encoder-decoder uses it; leave it out.")
    from .sampling import check_seed
    from .talk import start_of

    config = _sampling(options)
    check_seed(options.seed)
    start = start_of(options.system, options.conversation)
    packed = options.weights in ("int8", "int4")
    model, tokenizer = load(options.run, options.device, "float32" if packed else options.weights)
    if packed:
        compress(model, options.weights)
    writer = Writer(model, tokenizer, config, options, decoder_of(model, options.compile, options.lookup or 0))
    if options.chat and not (options.prompt or options.prompt_file):
        return _talk(writer, start)
    return _write(writer, start)


def decoder_of(model: LanguageModel, compiled: bool, lookup: int = 0) -> Decoder | None:
    """What runs the steps behind a prompt; None where the cache that grows does.

    Args:
        model: on its device; its blocks are compiled one by one where its steps cannot be one graph.
        compiled: `--compile` is given.
        lookup: tokens that are guessed at once.

    Raises:
        UserError: there is no compiler, or the state of a layer cannot step back from a wrong guess.
    """
    if not compiled and not lookup:
        return None
    from ..core.compiled import check_compiler, compile_blocks
    from .decode import Decoder, unfit

    device = next(model.parameters()).device.type
    if why := unfit(model, back=lookup > 0):
        if lookup:
            raise UserError(f"--lookup is given, but the model has {why}; leave it out.")
        compile_blocks(model, device, dynamic=True)
        return None
    if compiled:
        check_compiler(device)
    return Decoder(model, compiled, back=lookup > 0)


def _sampling(options: argparse.Namespace) -> SamplingConfig:
    """How tokens are drawn. Raises UserError for options that the others leave without an effect."""
    from .sampling import SamplingConfig

    if options.greedy and options.temperature is not None:
        raise UserError("--greedy and --temperature are both given; leave out one of them.")
    temperature = 0.0 if options.greedy else 0.8 if options.temperature is None else options.temperature
    greedy = "--greedy" if options.greedy else "--temperature 0"
    without = {name: "without --chat" for name in ("system", "conversation", "think") if not options.chat}
    if temperature == 0:
        without |= dict.fromkeys(("top_k", "top_p", "min_p", "seed"), f"with {greedy}, which draws nothing")
    if options.no_cache:
        without["compile"] = "with --no-cache, whose steps are not compiled"
        without["lookup"] = "with --no-cache, which has nothing to step back to"
    for name, why in without.items():
        value = getattr(options, name)
        if value is not None and value is not False:  # a number may be 0
            raise UserError(f"--{name.replace('_', '-')} is given {why}; leave it out.")
    return SamplingConfig(temperature, options.top_k, options.top_p, options.min_p)


class Writer:
    """Continues prompts and says how fast. Arguments as on the command line."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, config: SamplingConfig, options: Any,
        decoder: Decoder | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.config, self.options = model, tokenizer, config, options
        self.decoder = decoder
        self.tokens, self.seconds = 0, 0.0

    def run(self, ids: list[list[int]], texts: list[Continuation], streaming: bool, seed: int | None) -> None:
        """Fills `texts` with what follows the prompts `ids`."""
        from .sampling import generate

        started, options = time.perf_counter(), self.options
        ends = self.tokenizer.end_ids
        steps = generate(
            self.model, ids, options.max_tokens, self.config, seed, ends, use_cache=not options.no_cache,
            lookup=options.lookup or 0, decoder=self.decoder,
        )  # fmt: skip
        run_steps(steps, texts, ends, streaming)
        self.tokens += sum(text.tokens for text in texts)
        self.seconds += time.perf_counter() - started

    def report(self) -> None:
        rate = self.tokens / self.seconds if self.seconds else 0
        print(f"{self.tokens} tokens in {self.seconds:.1f} s, {rate:,.0f} tokens/s", file=sys.stderr)


def _write(writer: Writer, start: list[Message]) -> int:
    """Continues the prompts, or answer them as questions that do not know of each other."""
    from .talk import Talk

    options, tokenizer = writer.options, writer.tokenizer
    prompts = _prompts(options, tokenizer)
    if options.chat:
        talk = Talk(tokenizer, start, options.think)
        found = [talk.ask(prompt, list(start)) for prompt in prompts]
    else:
        found = [(prompt_ids(tokenizer, prompt), "") for prompt in prompts]
    texts = [Continuation(tokenizer, options.stop, ids, lead) for ids, lead in found]
    streaming = len(prompts) == 1 and not options.json
    if streaming and not options.chat:
        print(prompts[0], end="", flush=True)
    writer.run([ids for ids, _ in found], texts, streaming, options.seed)
    _report(options, prompts, texts, streaming)
    writer.report()
    return 0


def _talk(writer: Writer, start: list[Message]) -> int:
    """Answer one question after the other, each with all that was said before."""
    from .sampling import LARGEST_SEED
    from .talk import Talk, as_json, questions

    options, tokenizer = writer.options, writer.tokenizer
    talk, context = Talk(tokenizer, start, options.think), writer.model.config.transformer.context
    # What was said so far may end with a question.
    waiting = [None] if start and start[-1]["role"] not in ("assistant", "system", "developer") else []
    for number, question in enumerate(itertools.chain(waiting, questions())):
        try:
            ids, lead = talk.ask(question)
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            print(error, file=sys.stderr)  # a person can ask again
            continue
        if len(ids) > context:
            print(f"Only the last {context:,} tokens of the conversation are seen.", file=sys.stderr)
        text = Continuation(tokenizer, options.stop, ids, lead)
        writer.run(
            [ids],
            [text],
            not options.json,
            None if options.seed is None else (options.seed + number) % (LARGEST_SEED + 1),
        )
        rest = text.flush()
        if not options.json:
            print(rest, flush=True)
        talk.answered(text.text)
    if options.json:
        print(as_json(talk.messages))
    writer.report()
    return 0


def _prompts(options: argparse.Namespace, tokenizer: Tokenizer) -> list[str]:
    prompts = list(options.prompt)
    if options.prompt_file:
        from .data.reading import read_text

        prompts.append(read_text(options.prompt_file))
    if not prompts:
        prompts = ["" if tokenizer.eos_id is not None or tokenizer.beginning else "\n"]
    return prompts


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a text that is continued, with what stands before every text."""
    return tokenizer.beginning + (tokenizer.encode(prompt).tolist() if prompt else _beginning(tokenizer))


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """What stands before a text: the token that begins it, or the end of the one before it."""
    if tokenizer.beginning:
        return []
    if tokenizer.eos_id is None:
        raise UserError("--prompt is empty, and this tokenizer has no end-of-text token to start from; give some text.")
    return [tokenizer.eos_id]


def run_steps(steps: Any, texts: list[Continuation], ends: frozenset[int], streaming: bool) -> None:
    """Feeds tokens to the texts until all are finished."""
    finished: set[int] | None = None
    try:
        while True:
            step = next(steps) if finished is None else steps.send(finished)
            for number, token in step.items():
                shown = "" if token in ends else texts[number].push(token)
                if streaming:
                    print(shown, end="", flush=True)
            finished = {number for number in step if texts[number].done}
    except StopIteration:
        pass
    except KeyboardInterrupt:  # what is there is worth showing
        steps.close()


def _report(options: argparse.Namespace, prompts: list[str], texts: list[Continuation], streaming: bool) -> None:
    rest = [text.flush() for text in texts]
    if streaming:
        print(rest[0])
    elif options.json:
        rows = [{"prompt": p, "text": t.text, "tokens": t.tokens} for p, t in zip(prompts, texts, strict=True)]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
    else:
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
            print(f"--- {number} ---\n{prompt}{text.text}")
