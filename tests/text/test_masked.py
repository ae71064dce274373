"""`triune text pretrain`: hidden tokens, exact resume, and the encoder in transformers and below a head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from triune import cli
from triune.core.errors import UserError
from triune.text.checkpoints.pretrained import export, load
from triune.text.encoder import TextEncoder
from triune.text.masked.data import MaskedText
from triune.text.tokenizer import Tokenizer

SMALL = [
    *("--threads", "1", "--model.transformer.dim", "32", "--model.transformer.depth", "2"),
    *("--model.transformer.heads", "2", "--data.context", "32", "--data.batch_size", "4"),
    *("--trainer.val_check_interval", "2", "--trainer.limit_val_batches", "4"),
]
BERT = [
    *("--model.transformer.position", "learned", "--model.transformer.placement", "post"),
    *("--model.transformer.ffn", "gelu", "--model.transformer.bias", "true", "--model.segments", "2"),
    *("--model.transformer.norm_bias", "true", "--model.transformer.first_norm", "true"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path: Path) -> str:
    for n in range(12):
        (tmp_path / f"{n}.txt").write_text(f"document {n}: " + "the cat sat on the mat and saw a rat. " * (n + 3))
    return str(tmp_path / "*.txt")


def pretrain(files: str, run: Path, steps: int, *more: str) -> int:
    line = ["text", "pretrain", "--run", str(run), "--data.files", files, "--trainer.max_steps", str(steps)]
    return cli.main([*line, "--data.tokenizer", "bytes", *SMALL, *more])


def opened(files: str, **options: object) -> MaskedText:
    data = MaskedText(files=files, context=32, batch_size=4, **options)
    data.setup()
    return data


def test_windows_hide_text_and_nothing_else(files: str) -> None:
    data = opened(files, tokenizer="bytes")
    assert data.tokenizer.mask_id == 257 and data.vocab_size == 258
    loader = data.train_dataloader()
    batch = next(iter(loader))
    places, real = batch["places"], batch["targets"] != -100
    assert places.shape == batch["targets"].shape and len(places) % 64 == 0
    assert 0.05 < int(real.sum()) / batch["tokens"].numel() < 0.25
    stream = data.prepared.arrays["train"].open()[0]  # type: ignore[attr-defined]
    whole = batch["tokens"].flatten().scatter(0, places[real], batch["targets"][real]).view(4, 32)
    assert 256 not in batch["targets"][real], "the end of a text is not guessed"
    assert all(bytes(row.clamp(max=255).tolist()) in bytes(stream.clip(max=255).tolist()) for row in whole)
    again = next(iter(data.train_dataloader()))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(next(iter(loader))["tokens"], batch["tokens"]), "the next epoch"
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(data.val_dataloader(), data.val_dataloader()))


def test_validation_sees_every_token_once_and_nothing_behind_the_end(files: str) -> None:
    data = opened(files, tokenizer="bytes")
    other = opened(files, tokenizer="bytes")
    other.batch_size = 3
    stream = torch.from_numpy(data.prepared.arrays["val"].open()[0].astype("int64"))  # type: ignore[attr-defined]
    found, rows = [], []
    for loader in (data.val_dataloader(), other.val_dataloader()):
        batches = list(loader)
        rows.append(torch.cat([batch["tokens"] for batch in batches]))
        real = [batch["documents"] >= 0 for batch in batches]
        found.append(sum(int(mask.sum()) for mask in real))
        guessed = sum(int((batch["targets"] != -100).sum()) for batch in batches)
        assert 0.08 < guessed / len(stream) < 0.25
        for batch, mask in zip(batches, real):
            behind = (~mask).flatten().nonzero()[:, 0]
            scored = batch["places"][batch["targets"] != -100]
            assert not set(behind.tolist()) & set(scored.tolist())
    assert found == [len(stream)] * 2
    shorter = min(map(len, rows))
    assert torch.equal(rows[0][:shorter], rows[1][:shorter]), "the masks do not depend on the batches"


def test_tokens_of_another_document_and_behind_the_end_are_not_seen() -> None:
    from triune.core.config import TransformerConfig
    from triune.text.encoder import TextEncoderConfig

    core = TransformerConfig(dim=16, depth=1, heads=2)
    model = TextEncoder(TextEncoderConfig(20, core, segments=0, masked_head=True)).eval()
    tokens, documents = torch.randint(20, (1, 9)), torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1]])
    places, targets = torch.tensor([4, 5, 0]), torch.tensor([3, 7, -100])
    total, count = model.loss(tokens, targets, places, documents)
    assert int(count) == 2
    alone = model(tokens[:, 3:7])[0]
    expected = torch.nn.functional.cross_entropy(alone[1:3], targets[:2], reduction="sum")
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)


def test_training_resumes_bit_identically(files: str, tmp_path: Path) -> None:
    same = ["--model.schedule.kind", "constant", "--model.schedule.warmup", "0"]
    assert pretrain(files, tmp_path / "whole", 4, *same) == 0
    assert pretrain(files, tmp_path / "half", 2, *same) == 0
    line = ["text", "pretrain", "--run", str(tmp_path / "half"), "--resume", "true", "--trainer.max_steps", "4"]
    assert cli.main(line) == 0
    straight, resumed = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "half")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


@pytest.mark.parametrize(("more", "kind"), [([], "ModernBert"), (BERT, "Bert")], ids=["ModernBERT", "BERT"])
def test_the_encoder_runs_in_transformers(files: str, tmp_path: Path, more: list[str], kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    assert pretrain(files, tmp_path / "run", 2, *more) == 0
    ours = load(str(tmp_path / "run"))
    export(ours, tmp_path / "hf")
    theirs = getattr(transformers, f"{kind}ForMaskedLM").from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.mask_token_id == ours.companion.mask_id == 257
    tokens = torch.tensor([[*ours.companion.encode("the cat sat on the "), 257, 46, 32, 97]])
    with torch.inference_mode():
        torch.testing.assert_close(ours.model(tokens), theirs(input_ids=tokens).logits, rtol=1e-5, atol=1e-5)
    again = load(str(tmp_path / "hf"))
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in ours.model.state_dict().items())


def test_a_head_is_fitted_on_the_encoder(files: str, tmp_path: Path) -> None:
    assert pretrain(files, tmp_path / "run", 2) == 0
    rows = [f"{text} number {n},{label}" for n in range(20) for text, label in (("a cat", "yes"), ("a dog", "no"))]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    line = ["text", "fit", "--run", str(tmp_path / "fit"), "--data.table", str(tmp_path / "t.csv"), "--threads", "1"]
    line += ["--data.input", "text", "--data.target", "label", "--data.batch_size", "8", "--data.context", "24"]
    assert cli.main([*line, "--model.pretrained", str(tmp_path / "run"), "--trainer.max_steps", "1"]) == 0
    out = str(tmp_path / "v.npz")
    assert cli.main(["embed", "a cat", "a rat", "--run", str(tmp_path / "run"), "--task", "text", "--out", out]) == 0
    more = ["text", "pretrain", "--run", str(tmp_path / "more"), "--model.pretrained", str(tmp_path / "run")]
    assert cli.main([*more, "--data.files", files, "--data.context", "48", "--trainer.max_steps", "1"]) == 0
    assert load(str(tmp_path / "more")).model.config.transformer.context == 48


def test_a_mask_token_changes_nothing_about_text(tmp_path: Path) -> None:
    from triune.text.specials import with_mask

    for plain in (Tokenizer.characters("abc [MASK]"), Tokenizer.bytes(), Tokenizer.train_bpe(["abc abd"] * 9, 270)):
        masked = Tokenizer(with_mask(plain.backend))
        assert masked.vocab_size == plain.vocab_size + 1 and masked.mask_id == plain.vocab_size
        text = "ab [MASK]a"
        assert masked.encode(text).tolist() == plain.encode(text).tolist()
        masked.save(tmp_path)
        assert Tokenizer.load(tmp_path).mask_id == masked.mask_id
    with pytest.raises(UserError, match="not among"):
        Tokenizer(with_mask(Tokenizer.characters("abc").backend)).encode("abd")


def test_what_has_no_place_is_refused(files: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"data\.chats"):
        MaskedText(chats="x.jsonl")
    assert pretrain(files, tmp_path / "a", 1, "--model.transformer.causal", "true") == 2
    assert "guessed from both sides" in capsys.readouterr().err
    from triune.core.config import TransformerConfig
    from triune.text.model import LanguageModel, LanguageModelConfig

    LanguageModel(LanguageModelConfig(257, TransformerConfig(dim=16, depth=1, heads=2, causal=True))).save_pretrained(
        tmp_path / "lm"
    )
    Tokenizer.bytes().save(tmp_path / "lm")
    line = ["text", "pretrain", "--run", str(tmp_path / "b"), "--data.files", files, "--model.pretrained"]
    assert cli.main([*line, str(tmp_path / "lm")]) == 2
    assert "no token that hides others" in capsys.readouterr().err
