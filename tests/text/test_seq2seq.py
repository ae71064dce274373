"""Encoder-decoders of pairs: rules, files, batches, decoding with the cache, and the command line from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from triune import cli
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.losses import IGNORED
from triune.core.training.data import Draw
from triune.text.seq2seq.data import PairBatches, PairData
from triune.text.seq2seq.decode import beam, greedy, pad
from triune.text.seq2seq.model import EncoderDecoder, EncoderDecoderConfig
from triune.text.seq2seq.read import read_pairs
from triune.text.seq2seq.rules import RULES, SIDES, first, ordinal, side_of, words, year_words

SHAPES = {
    "rotary": TransformerConfig(dim=16, depth=2, heads=2, norm="rmsnorm", ffn="swiglu", bias=False, context=16),
    "2017": TransformerConfig(
        dim=16, depth=2, heads=2, placement="post", position="sinusoidal", ffn="relu", context=16
    ),
    "learned": TransformerConfig(dim=16, depth=1, heads=2, position="learned", context=16),
    "hybrid": TransformerConfig(dim=16, depth=2, heads=2, mixer="MA", context=16),
}
SOURCES = [[3, 4, 5, 6], [7, 8], [9], [5, 5, 5]]


def made(shape: str = "rotary", seed: int = 1, **options: bool) -> EncoderDecoder:
    """A model with random weights everywhere, in evaluation mode."""
    torch.manual_seed(seed)
    decoder = replace(SHAPES[shape], causal=True, cross_attention=True)
    model = EncoderDecoder(EncoderDecoderConfig(12, 11, SHAPES[shape], decoder, **options)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return model


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_cache_writes_is_what_is_written_without_and_alone(shape: str) -> None:
    for seed in range(50):  # of a model whose rows end one after the other, so that some are dropped
        model = made(shape, seed)
        together = greedy(model, SOURCES, 10)
        if len({len(text) for text in together}) > 1:
            break
    else:
        raise AssertionError("all rows of all models end at once")
    assert together == greedy(model, SOURCES, 10, use_cache=False)
    assert together == [greedy(model, [source], 10)[0] for source in SOURCES]


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_of_a_source_changes_nothing(shape: str) -> None:
    model, tokens = made(shape), torch.tensor([[11, 1, 2]] * len(SOURCES))
    source, valid = pad(SOURCES)
    together = model(source, tokens, valid)
    longer = torch.cat([source, torch.full((len(SOURCES), 3), 9)], dim=1)
    more = torch.cat([valid, torch.zeros(len(SOURCES), 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(model(longer, tokens, more), together, atol=1e-5, rtol=1e-5)
    for row, text in enumerate(SOURCES):
        alone = model(torch.tensor([text]), tokens[:1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_the_decoder_sees_the_source_and_not_the_future() -> None:
    model, tokens = made(), torch.tensor([[11, 1, 2, 3]])
    source = torch.tensor([[3, 4]])
    before = model(source, tokens)
    changed = model(source, torch.tensor([[11, 1, 9, 9]]))
    torch.testing.assert_close(changed[:, :2], before[:, :2])
    assert not torch.allclose(changed[:, 2:], before[:, 2:])
    assert not torch.allclose(model(torch.tensor([[3, 5]]), tokens), before)


def test_a_wide_beam_finds_the_likeliest_target_of_all() -> None:
    model = made()
    best, score = beam(model, SOURCES[0], 3, beams=12**2, penalty=0.0)[0]  # the end is the third token
    targets = [list(text) for length in range(3) for text in np.ndindex(*[11] * length)]
    likeliest = max(_likelihood(model, SOURCES[0], text) for text in targets)
    assert score == pytest.approx(_likelihood(model, SOURCES[0], best), abs=1e-4)
    assert score == pytest.approx(likeliest, abs=1e-4)


def _likelihood(model: EncoderDecoder, source: list[int], target: list[int]) -> float:
    end = model.config.end
    with torch.inference_mode():
        logits = model(torch.tensor([source]), torch.tensor([[end, *target]])).double().log_softmax(-1)[0]
    return float(sum(logits[at, token] for at, token in enumerate([*target, end])))


def test_beams_refuse_none() -> None:
    with pytest.raises(UserError, match="beams is 0"):
        beam(made(), [1], 3, 0)


def test_label_smoothing_is_that_of_pytorch_and_leaves_padding_out() -> None:
    model = made()
    source, valid = pad(SOURCES[:2])
    targets = torch.tensor([[1, 11], [11, IGNORED]])
    total, count, logits = model.loss(source, valid, torch.tensor([[11, 1], [11, 11]]), targets, 0.1)
    chances = logits.log_softmax(-1)
    rows = [(0, 0, 1), (0, 1, 11), (1, 0, 11)]
    wanted = -sum(0.9 * chances[i, j, t] + 0.1 * chances[i, j].mean() for i, j, t in rows)
    assert int(count) == 3
    torch.testing.assert_close(total, wanted)


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"tied": True}, {"shared": False, "tied": True}])
def test_a_model_comes_back_from_its_folder_under_sane_names(tmp_path: Path, options: dict[str, bool]) -> None:
    model = made(**options)
    model.save_pretrained(tmp_path)
    again = EncoderDecoder.from_pretrained(tmp_path).eval()
    assert again.config == model.config
    source, tokens = torch.tensor([[3, 4]]), torch.tensor([[11, 1]])
    assert torch.equal(again(source, tokens), model(source, tokens))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} <= {
        "embedding", "target_embedding", "encoder", "decoder", "head",
    }  # fmt: skip
    assert (again.target_embedding.weight is again.embedding.weight) == options.get("shared", True)
    assert (again.head.weight is again.target_embedding.weight) == options.get("tied", False)


@pytest.mark.parametrize(
    ("side", "change", "said"),
    [
        ("encoder", {"causal": True}, "encoder.causal is True"),
        ("decoder", {"causal": False}, "decoder.causal is False"),
        ("decoder", {"cross_attention": False}, "decoder.cross_attention is False"),
        ("decoder", {"dim": 32}, "decoder.dim is 32, but must be encoder.dim, 16"),
    ],
)
def test_two_transformers_that_do_not_fit_are_refused(side: str, change: dict[str, int], said: str) -> None:
    config = made().config
    with pytest.raises(UserError, match=said):
        replace(config, **{side: replace(getattr(config, side), **change)})


# -- rules ------------------------------------------------------------------------------------------------------------


def test_no_target_is_on_two_sides_and_pairs_depend_on_the_seed_alone() -> None:
    for rule in RULES:
        targets = {side: {pair.target for pair in first(rule, side, 300, 0)} for side in SIDES}
        assert not targets["train"] & targets["val"] and not targets["test"] & (targets["train"] | targets["val"])
        assert all(side_of(target) == side for side, several in targets.items() for target in several)
        assert first(rule, "train", 50, 3) == first(rule, "train", 50, 3) != first(rule, "train", 50, 4)


def test_one_source_has_one_target() -> None:
    for rule in RULES:
        seen: dict[str, str] = {}
        for side in SIDES:
            for pair in first(rule, side, 500, 5):
                assert seen.setdefault(pair.source.lower(), pair.target) == pair.target


def test_words_of_numbers_and_years() -> None:
    assert words(12005, True) == "twelve thousand and five" and words(12005) == "twelve thousand five"
    assert words(999_999) == "nine hundred ninety-nine thousand nine hundred ninety-nine"
    assert words(340_021, True, " ") == "three hundred and forty thousand and twenty one"
    assert [ordinal(n, False) for n in (1, 2, 3, 11, 12, 22, 31)] == [
        "1st",
        "2nd",
        "3rd",
        "11th",
        "12th",
        "22nd",
        "31st",
    ]
    assert [ordinal(n, True) for n in (3, 12, 20, 31)] == ["third", "twelfth", "twentieth", "thirty-first"]
    years = {1900: "nineteen hundred", 1905: "nineteen oh five", 2000: "two thousand", 2005: "two thousand and five"}
    assert {year: year_words(year) for year in years} == years
    assert len({words(n, True) for n in range(0, 1_000_000, 7)}) == len(range(0, 1_000_000, 7))


# -- files and batches ------------------------------------------------------------------------------------------------


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_tables_and_rows_are_read_alike(tmp_path: Path) -> None:
    wanted = [("a b", "1"), ('say "x"', "2")]
    files = [
        written(tmp_path / "a.tsv", 'source\ttarget\na b\t1\nsay "x"\t2\n'),
        written(tmp_path / "b.tsv", 'a b\t1\r\nsay "x"\t2'),
        written(tmp_path / "c.csv", 'n,target,source\n7,1,a b\n8,2,"say ""x"""\n'),
        written(tmp_path / "d.jsonl", '{"source": "a b", "target": "1"}\n{"target": "2", "source": "say \\"x\\""}\n'),
    ]
    for file in files:
        pairs, remark = read_pairs([file], "source", "target")
        assert [tuple(pair) for pair in pairs] == wanted
        assert ("first column is the source" in remark) == file.endswith("b.tsv")
    renamed = written(tmp_path / "e.csv", "de,en\nja,yes\n")
    assert [tuple(p) for p in read_pairs([renamed], "de", "en")[0]] == [("ja", "yes")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "a\tb\tc\n1\t2\t3\n", "has the columns a, b, c, but must have source and target"),
        ("a.tsv", "source\tb\n1\t2\n", "one is source, but not the other"),
        ("a.tsv", "a\t1\nb\n", "a.tsv:2 has 1 columns"),
        ("a.tsv", "a\t1\nb\t \n", "a.tsv:2 has no target"),
        ("a.csv", 'source,target\n"a,1\n', "cannot be read as a table"),
        ("a.tsv", "source\ttarget\n", "holds no pair"),
        ("a.jsonl", '{"source": "a"}\n', "has no target"),
        ("a.jsonl", '{"source": "a", "target": 3}\n', "target is 3, but must be text"),
        ("a.jsonl", "[1]\n", "is a int, but must be an object"),
        ("a.txt", "a\tb\n", "is no file of pairs"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_pairs([written(tmp_path / name, content)], "source", "target")


def test_targets_of_a_file_are_held_out_with_all_their_sources(tmp_path: Path) -> None:
    lines = [f"{'x' * (i % 7 + 1)} {i}\t{i % 20}" for i in range(100)]
    data = PairData(written(tmp_path / "a.tsv", "\n".join(lines)), val_fraction=0.2, batch_size=4)
    data.setup()
    train, val = data.side("train"), data.side("val")
    assert len({p.target for p in val.pairs}) == 4 and len(val) == 20 and len(train) == 80
    assert "no target on both sides" in data.describe() and data.side("test") is val


def test_a_batch_ends_each_target_and_marks_padding() -> None:
    data = PairData("numbers", examples=20)
    data.setup()
    batch = PairBatches(data.side("train"), data.end)[Draw(0, np.array([0, 5, -1]))]
    pair = data.side("train").pairs[5]
    assert data.tokenizer.decode(batch["source"][1][batch["source_valid"][1]]) == pair.source
    counted = batch["targets"][1] != IGNORED
    assert batch["targets"][1][counted].tolist() == [*pair.target.encode(), data.end]
    assert batch["tokens"][1][: int(counted.sum())].tolist() == [data.end, *pair.target.encode()]
    assert (batch["targets"][2] == IGNORED).all() and batch["source_valid"].any(1).all()


def test_an_epoch_visits_each_pair_once_in_batches_of_equal_length() -> None:
    data = PairData("numbers", examples=640, batch_size=32)
    data.setup()
    order, lengths = data.train_dataloader().order, data.side("train").lengths
    batches = [order.take(at) for at in range(len(order))]
    assert sorted(np.concatenate(batches)) == list(range(640))
    assert np.mean([np.ptp(lengths[taken]) for taken in batches]) < np.ptp(lengths) / 4
    assert not np.array_equal(order.take(0), order.take(len(order)))


# -- the command line -------------------------------------------------------------------------------------------------


def fit(run: Path, *options: str) -> int:
    small = [f"--model.{side}.{name}" for side in ("encoder", "decoder") for name in ("dim=32", "depth=1", "heads=2")]
    return cli.main(
        ["text", "fit", "--run", str(run), *small, "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
        + ["--threads", "1", *options]
    )


def test_from_the_recipe_to_a_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three words are learned, scored on both sides of a file, written greedily and by beams, and the run goes on."""
    lines = [
        f"{word}{'!' * n}\t{out}" for n in range(8) for word, out in (("ja", "yes"), ("nein", "no"), ("und", "and"))
    ]
    file = written(tmp_path / "pairs.tsv", "\n".join(lines))
    val = written(tmp_path / "val.tsv", "ja\tyes\nnein\tno\nund!!!\tand\n")
    run = tmp_path / "run"
    steps = ["--data.pairs", file, "--data.val_pairs", val, "--data.batch_size", "24"]
    steps += ["--trainer.max_steps", "40", "--trainer.val_check_interval", "20"]
    assert fit(run, *steps) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_exact_match"] == summary["decoded_exact_match"] == summary["val_token_accuracy"] == 1.0
    assert "first column is the source" in capsys.readouterr().out

    prompts = ["--prompt", "nein!", "--prompt", "ja!!!"]
    for options in ([], ["--beams", "3"], ["--no-cache"], ["--device", "cpu", "--greedy"]):
        assert cli.main(["text", "generate", str(run), *prompts, *options]) == 0
        assert capsys.readouterr().out.split() == ["no", "yes"]
    assert cli.main(["text", "generate", str(run), "--prompt", "und", "--json"]) == 0
    assert [row["text"] for row in json.loads(capsys.readouterr().out)] == ["and"]
    assert cli.main(["text", "test", str(run)]) == 0
    assert "test_exact_match 1.0000" in capsys.readouterr().out
    for options, said in (
        (["--prompt", "a", "--temperature", "0.5"], "--temperature is given"),
        (["--prompt", "a", "--beams", "0"], "--beams is 0"),
        (["--prompt", "a", "--beams", "2", "--greedy"], "--greedy and --beams"),
        ([], "needs a source"),
        (["--prompt", "a" * 300], "trained on at most 256"),
    ):
        assert cli.main(["text", "generate", str(run), *options]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["lens", "heads", str(run)]) == 2
    assert cli.main(["convert", str(run), str(tmp_path / "out"), "--to", "hf"]) == 2


def test_a_run_that_is_interrupted_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a rule, which `data.pairs` names in the run's own config.yaml."""
    monkeypatch.setattr(PairData, "HELD_OUT", 50)
    options = ["--data.pairs", "dates", "--data.examples", "64", "--data.batch_size", "16", "--model.schedule.kind"]
    options += ["constant", "--trainer.val_check_interval", "3", "--trainer.limit_val_batches", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(whole, *options, "--trainer.max_steps", "6") == 0
    assert fit(parts, *options, "--trainer.max_steps", "3") == 0
    resumed = ["text", "fit", "--run", str(parts), "--resume", "true", "--trainer.max_steps", "6"]
    assert cli.main(resumed) == 0
    one, two = (EncoderDecoder.from_pretrained(run / "model").state_dict() for run in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.pairs", "date"], "There is no file 'date'"),
        (["--data.pairs", "dates", "--data.source", "x"], "--data.source is given, but dates are made by rules"),
        (
            ["--data.pairs", "dates", "--data.examples", "64", "--data.tokenizer", "characters"],
            "which has no end of text",
        ),
        (
            ["--data.pairs", "dates", "--data.examples", "64", "--data.longest", "2"],
            "No pair to train on has at most 2 tokens",
        ),
        (["--data.pairs", "dates", "--data.examples", "9"], "fewer than one batch"),
        (["--data.pairs", "dates", "--data.chats", "x"], "data.chats"),
        (["--data.pairs", "dates", "--model.decoder.dim", "64"], "model.decoder.dim is 64"),
        (["--data.pairs", "dates", "--model.label_smoothing", "1"], "label_smoothing is 1"),
        (["--data.pairs", "dates", "--model.encoder.causal", "true"], "an encoder sees both sides"),
        (["--data.pairs", "dates", "--model.pretrained", "x"], "starts from random weights only"),
        (["--data.pairs", "dates", "--model.encoder.mixer", "MX"], "mixer has 'X' in the pattern MX"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr(PairData, "HELD_OUT", 50)
    assert fit(tmp_path / "run", *options, "--trainer.max_steps", "2") == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    assert not (tmp_path / "run").exists()
