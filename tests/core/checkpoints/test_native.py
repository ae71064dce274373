"""Models on disk: what is written comes back, and what does not fit is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from triune import __version__
from triune.core.checkpoints import native as checkpoint
from triune.core.checkpoints.checksums import write_config
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig
from triune.core.transformer import Transformer
from triune.text.model import LanguageModel, LanguageModelConfig

CONFIG = TransformerConfig(
    dim=16, depth=2, heads=4, kv_heads=2, causal=True, window=[4, None], rotary=[RotaryConfig(base=100.0), None]
)


def transformer(**changes: object) -> Transformer:
    values = CONFIG.to_dict() | {"rotary": CONFIG.rotary} | changes
    return Transformer(TransformerConfig(**values))  # pyright: ignore[reportArgumentType]


def language_model(tied: bool = True) -> LanguageModel:
    model = LanguageModel(LanguageModelConfig(vocab_size=11, transformer=CONFIG, tied=tied, head_bias=True))
    torch.nn.init.normal_(model.head.weight)
    return model


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(
        ours[n].dtype == theirs[n].dtype and torch.equal(ours[n], theirs[n]) for n in ours
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved transformer."""
    transformer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_transformer_round_trip_is_bit_identical(tmp_path: Path) -> None:
    model, x = transformer(), torch.randn(2, 9, 16)
    model.save_pretrained(tmp_path / "deep" / "model")
    again = Transformer.from_pretrained(tmp_path / "deep" / "model")
    assert again.config == model.config
    assert equal_states(again, model)
    assert torch.equal(again(x), model(x))
    again.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "deep" / "model" / name).read_bytes()


@pytest.mark.parametrize("tied", [True, False])
def test_language_model_round_trip(tmp_path: Path, tied: bool) -> None:
    model, tokens = language_model(tied), torch.randint(0, 11, (2, 9))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("head.weight" in stored) is not tied
    again = LanguageModel.from_pretrained(tmp_path)
    assert (again.head.weight is again.embedding.weight) is tied
    assert equal_states(again, model)
    assert torch.equal(again(tokens), model(tokens))


def test_config_says_what_wrote_it(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert {k: config[k] for k in ("library", "format", "version", "architecture")} == {
        "library": "triune", "format": 1, "version": __version__, "architecture": "Transformer",
    }  # fmt: skip
    assert config["transformer"]["window"] == [4, None]
    assert config["transformer"]["ffn_dim"] == 64
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def refuses(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        Transformer.from_pretrained(folder)
    for part in parts:
        assert part in str(error.value)


def rewrite_config(folder: Path, **changes: object) -> None:
    write_config(folder, json.loads((folder / "config.json").read_text()) | changes)


def test_missing_folder_config_and_weights(folder: Path) -> None:
    refuses(folder / "nowhere", "There is no model folder", "config.json and model.safetensors")
    (folder / "model.safetensors").rename(folder / "other.bin")
    refuses(folder, "has a config.json but no weights (model.safetensors)", "it holds config.json, other.bin")
    (folder / "config.json").unlink()
    refuses(folder, "is not a model: it has no config.json", "it holds other.bin")
    (folder / "other.bin").unlink()
    refuses(folder, "it holds nothing")


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b"\xff\xfe\x00", b"", b"null"])
def test_damaged_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refuses(folder, str(folder / "config.json"), "another file")


def test_config_of_something_else(folder: Path, tmp_path: Path) -> None:
    language_model().save_pretrained(tmp_path / "lm")
    refuses(tmp_path / "lm", "describes LanguageModel, but Transformer was expected here")
    with pytest.raises(UserError, match="describes Transformer, but LanguageModel was expected"):
        LanguageModel.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    refuses(folder, "describes an unknown model, but Transformer was expected here")


def test_config_from_the_future(folder: Path) -> None:
    rewrite_config(folder, format=99, version="9.0")
    refuses(folder, "was written by triune 9.0, which is newer; please upgrade")


def test_huge_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triune.core.files.MAX_JSON_BYTES", 100)
    refuses(folder, "holds more than 100 bytes")


def test_unknown_and_missing_keys(folder: Path) -> None:
    rewrite_config(folder, transformer={"dim": 16, "heds": 4})
    refuses(folder, "Unknown key 'transformer.heds' (did you mean 'heads'?)")
    rewrite_config(folder, transformer=None)
    refuses(folder, "transformer is a NoneType, but must be a mapping")


def test_model_config_names_missing_and_unknown_keys() -> None:
    with pytest.raises(UserError, match=r"The key 'model.vocab_size' is missing"):
        LanguageModelConfig.from_dict({"transformer": CONFIG.to_dict()})
    with pytest.raises(UserError, match=r"Unknown key 'model.vocabsize' \(did you mean 'vocab_size'\?\)"):
        LanguageModelConfig.from_dict({"vocabsize": 3})


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuses(folder, str(path), "cannot be read as safetensors", "cut short or damaged")


def test_overwritten_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(os.urandom(1000))
    refuses(folder, "cannot be read as safetensors")


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    state["extra.weight"] = state.pop("blocks.1.attn.q.weight")
    state["final_norm.bias"] = torch.zeros(3)
    save_file(state, path)
    refuses(
        folder, f"The weights of '{folder}' do not fit this model", "1 missing: blocks.1.attn.q.weight",
        "1 unexpected: extra.weight", "1 of another shape: final_norm.bias is (3,) there and (16,) here",
    )  # fmt: skip


def test_long_lists_are_cut() -> None:
    with pytest.raises(UserError, match=r"34 missing: blocks.0.norm1.weight, .* and 30 more"):
        checkpoint.load_state(transformer(), {}, "nothing")


def test_a_model_that_does_not_fit_is_left_alone() -> None:
    model = transformer()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = {n: torch.zeros_like(t) for n, t in before.items()}
    state["final_norm.bias"] = torch.zeros(3)
    with pytest.raises(UserError):
        checkpoint.load_state(model, state, "bad")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_tied_head_may_be_absent_but_not_the_embedding() -> None:
    model = language_model()
    state = dict(model.state_dict())
    del state["head.weight"]
    checkpoint.load_state(language_model(), state, "tied")
    with pytest.raises(UserError, match=r"1 missing: head\.weight"):
        checkpoint.load_state(language_model(tied=False), state, "tied")


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(folder: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def disk_full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, disk_full)
    with pytest.raises(OSError, match="No space left"):
        transformer(ffn_dim=8).save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_new_weights_replace_old_ones(folder: Path) -> None:
    model = transformer(ffn_dim=8)
    model.save_pretrained(folder)
    assert equal_states(Transformer.from_pretrained(folder), model)


def test_half_precision_weights_keep_their_dtype_on_disk(tmp_path: Path) -> None:
    transformer().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert {t.dtype for t in Transformer.from_pretrained(tmp_path).state_dict().values()} == {torch.float32}
