"""Other mixers than attention in the language model of proteins: padding, contact head, files, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from triune import cli
from triune.core.errors import UserError
from triune.protein.language.contact_head import ContactHead, stream_features
from triune.protein.language.model import PAD, SequenceConfig, SequenceModel, esm_transformer, sequence_tokens
from triune.protein.language.task import PretrainTask

LETTERS = "MKVLAGDWTRESHIFQNPYC"


def made(mixer: str) -> SequenceModel:
    torch.manual_seed(0)
    model = SequenceModel(SequenceConfig(replace(esm_transformer("tiny"), mixer=mixer))).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("mixer", ["M", "D", "L", "R", "S", "G", "U", "T"])
def test_both_directions_are_read_and_padding_is_not(mixer: str) -> None:
    model, tokens = made(mixer + "A"), sequence_tokens(LETTERS)
    with torch.no_grad():
        alone = model(tokens)
        padded = torch.cat([tokens, torch.full((1, 7), PAD)], dim=1)
        torch.testing.assert_close(model(padded)[:, : tokens.shape[1]], alone, atol=2e-5, rtol=1e-5)
        recurrent = made(mixer * 2)
        first, last = tokens.clone(), tokens.clone()
        first[0, 1], last[0, -2] = 7, 7
        before = recurrent(tokens)
        for changed in (first, last):
            assert (recurrent(changed) - before).abs()[0, len(LETTERS) // 2].max() > 1e-6


def test_a_contact_head_reads_layers_of_attention_alone() -> None:
    model = made("MA")
    seen: list[int] = []
    stream_features(model, sequence_tokens(LETTERS), lambda layer, maps: seen.append(layer))
    assert seen == [1]
    generator = torch.Generator().manual_seed(0)
    known = [
        (
            torch.randint(20, (24,), generator=generator),
            torch.randint(2, (24, 24), generator=generator, dtype=torch.int8),
        )
        for _ in range(2)
    ]
    head = ContactHead.fit(model, known, strength=10.0)
    assert not head.weight[0].any() and head.weight[1].any()
    assert head(model, sequence_tokens(LETTERS)).shape == (1, len(LETTERS), len(LETTERS))
    with pytest.raises(UserError, match="layer 1, whose mixer is mamba2; it belongs to another model"):
        head(made("AM"), sequence_tokens(LETTERS))
    with pytest.raises(UserError, match="reads the attention maps of at least one layer"):
        ContactHead.fit(made("MM"), known)


def pretrain(run: Path, *options: str) -> int:
    return cli.main(
        ["protein", "pretrain", "--run", str(run), "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
        + ["--threads", "1", "--model.size", "tiny", "--data.context", "32", "--trainer.max_steps", "2"]
        + ["--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "1", *options]
    )


def test_a_model_without_attention_says_what_it_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It trains, is scored, fine-tuned by LoRA, and refuses contacts and other formats in a sentence each."""
    run, again = tmp_path / "run", tmp_path / "again"
    assert pretrain(run, "--model.transformer.mixer", "gated_delta") == 0
    said = capsys.readouterr().out
    assert "no layer of this model has attention" in said and "protein contacts" not in said
    assert "mixer gated_delta" in said and "ESM-2 shape" not in said
    assert "val_long_p_at_l5" not in json.loads((run / "summary.json").read_text())
    model = SequenceModel.from_pretrained(run / "model")
    assert model.config.transformer.mixer == "gated_delta"
    assert cli.main(["protein", "validate", str(run), "--trainer.limit_val_batches", "1"]) == 0
    fasta = tmp_path / "a.fasta"
    fasta.write_text(f">a\n{LETTERS}\n")
    for command, sentence in (
        (["protein", "contacts", str(fasta), "--run", str(run)], "has no contact head"),
        (["convert", str(run), str(tmp_path / "hf"), "--to", "hf"], "cannot be written for 'hf'"),
    ):
        assert cli.main(command) == 2
        assert sentence in capsys.readouterr().err
    lora = ["--model.pretrained", str(run), "--model.lora.rank", "2", "--model.size", "null"]
    assert pretrain(again, *lora) == 0
    assert SequenceModel.from_pretrained(again / "model").config.transformer.mixer == "gated_delta"


def test_size_and_shape_may_not_differ() -> None:
    mixed = replace(esm_transformer("1M"), mixer="mamba2", mixer_options={"mamba2": {"state": 8}})
    assert PretrainTask("tiny", transformer=mixed).config.transformer.depth == 2
    with pytest.raises(UserError, match=r"transformer\.depth is 3, but model.size tiny has 2"):
        PretrainTask("tiny", transformer=replace(mixed, depth=3))
    assert PretrainTask(transformer=replace(mixed, depth=3)).config.transformer.depth == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["mixer", "MX"], "mixer has 'X' in the pattern MX"),
        (["depth", "2", "mixer", "MMM"], "must have one for each of 2 layers"),
        (["mixer", "mamba2", "mixer_options", "{mamba: {state: 8}}"], "mixer_options is 'mamba'"),
        (["mixer", "mamba2", "mixer_options", "{mamba2: {rank: 8}}"], "has 'rank'"),
        (["mixer", "mamba2", "window", "8"], "window is 8"),
        (["experts.count", "3", "experts.active", "4"], "active is 4"),
    ],
)
def test_what_does_not_fit_is_refused_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    words = [f"--model.transformer.{name}={value}" for name, value in zip(options[::2], options[1::2])]
    assert pretrain(tmp_path / "run", *words) == 2
    message = capsys.readouterr().err
    assert said in message and message.startswith("error: ") and "Traceback" not in message
