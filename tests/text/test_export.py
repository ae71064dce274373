"""What `triune text fit` trains without further settings goes to Hugging Face: equal logits, tokens and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.cli import main
from triune.core.errors import UserError
from triune.text.checkpoints.pretrained import export, load
from triune.text.data.chat import ChatTemplate
from triune.text.model import LanguageModel
from triune.text.sampling import SamplingConfig, generate
from triune.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("own_cache")
TEXT = "It was a dark and stormy night; the rain fell in torrents.\n\nIt was a bright, cold day in April.\n" * 40
CHATS = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(6)]
SMALL = [
    "--model.transformer.dim", "32", "--model.transformer.depth", "2", "--model.transformer.heads", "2",
    "--data.context", "64", "--data.batch_size", "2", "--trainer.max_steps", "8", "--trainer.val_check_interval", "8",
    "--trainer.accelerator", "cpu",
]  # fmt: skip


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))


def fit(folder: Path, *options: str) -> Path:
    """A run of a few steps."""
    assert main(["text", "fit", "--run", str(folder / "run"), *SMALL, *options]) == 0
    return folder / "run"


def text(folder: Path, *options: str) -> Path:
    (folder / "a.txt").write_text(TEXT)
    return fit(folder, "--data.files", str(folder / "a.txt"), *options)


def chats(folder: Path) -> Path:
    (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in CHATS))
    return fit(folder, "--data.chats", str(folder / "a.jsonl"), "--data.tokenizer", "bytes")


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: text(folder, "--data.vocab_size", "300"),
        lambda folder: text(folder, "--data.tokenizer", "characters"),
        chats,
    ],
    ids=["bpe", "characters", "chats"],
)
def test_a_run_is_the_same_in_transformers(tmp_path: Path, make: Any) -> None:
    run = make(tmp_path)
    assert main(["convert", str(run), str(tmp_path / "hf"), "--to", "hf"]) == 0
    model, tokenizer = LanguageModel.from_pretrained(run / "model").eval(), Tokenizer.load(run / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    names = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")

    ids = tokenizer.encode("It was a dark night").tolist()
    assert names("It was a dark night", add_special_tokens=False)["input_ids"] == ids
    assert names.eos_token_id == tokenizer.eos_id
    tokens = torch.randint(tokenizer.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=0, atol=2e-5)
    if tokenizer.chat_template:
        question = [{"role": "user", "content": "What is 2 and 2?"}]
        ids = ChatTemplate(tokenizer).ask(question).tolist()
        asked = names.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        assert names(asked, add_special_tokens=False)["input_ids"] == ids

    steps = generate(model, [ids], 24, SamplingConfig(temperature=0), ends=tokenizer.end_ids)
    written = [step[0] for step in steps]
    found = theirs.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)[0, len(ids) :]
    assert found.tolist() == written
    assert names.decode(found, skip_special_tokens=True) == tokenizer.decode(written)


def test_a_shape_that_only_triune_has_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipes of published figures keep their shape; a run of theirs says where it cannot go, and how it could."""
    run = text(tmp_path, "--config", "shakespeare-char-cpu")
    shown = " ".join(capsys.readouterr().out.split())
    assert "no counterpart at Hugging Face: transformer.input_norm True, transformer.ffn 'relu2'" in shown
    assert "triune convert" not in shown
    with pytest.raises(
        UserError, match=r"no transformer.input_norm True.*train with the settings of triune text fit without --config"
    ):
        export(load(str(run)), tmp_path / "hf")
    assert main(["convert", str(run), str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("recipe", ["default", "demo", "gpt2-124m"])
def test_recipes_for_use_have_a_shape_of_hugging_face(recipe: str) -> None:
    import yaml

    from triune.core.config import TransformerConfig
    from triune.text.checkpoints.pretrained import lacking
    from triune.text.model import LanguageModelConfig
    from triune.text.task import MODERN

    path = Path(__file__).parents[2] / "text" / "recipes" / f"{recipe}.yaml"
    settings = yaml.safe_load(path.read_text())["model"]["transformer"]
    config = TransformerConfig.from_dict(MODERN.to_dict() | settings)
    assert lacking(LanguageModelConfig(300, config, tied=False)) == []
