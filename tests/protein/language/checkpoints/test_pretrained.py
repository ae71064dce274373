"""fair-esm's and Hugging Face's ESM-2 and ESM-1b: the same numbers here, and back without a difference."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig
from triune.protein.language.checkpoints.pretrained import FAMILIES, export, load, parity
from triune.protein.language.contact_head import ContactHead
from triune.protein.language.model import (
    EOS,
    MASK,
    PAD,
    VOCABULARY,
    SequenceConfig,
    SequenceModel,
    esm_transformer,
    sequence_tokens,
)

SIZES = [(2, 32, 4), (1, 48, 2), (3, 40, 5)]
"""Layers, dim, heads."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def fair() -> Any:
    return pytest.importorskip("esm", reason="fair-esm is not installed")


@pytest.fixture(scope="module")
def hf() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.utils.logging.disable_progress_bar()
    return transformers


def lively(model: torch.nn.Module) -> Any:
    """Weights that make attention uneven and biases, norms and the contact regression count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "regression" in name:
                parameter.normal_(std=3.0)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


def chains(*lengths: int, masked: bool = True) -> Tensor:
    tokens = torch.full((len(lengths), max(lengths) + 2), PAD)
    for row, length in zip(tokens, lengths):
        row[: length + 2] = torch.tensor([0, *torch.randint(4, 24, (length,)).tolist(), EOS])
        if masked:
            row[2:length:5] = MASK
    return tokens


def contacts(head: ContactHead, model: SequenceModel, tokens: Tensor) -> Tensor:
    return head(model, tokens).sigmoid()


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) < 1e-5


# -- fair-esm ----------------------------------------------------------------------------------------------------------


def fair_model(fair: Any, kind: str, size: tuple[int, int, int], token_dropout: bool = True, norm: bool = True) -> Any:
    layers, dim, heads = size
    if kind == "ESM-2":
        return lively(fair.ESM2(layers, dim, heads, token_dropout=token_dropout))
    args = Namespace(
        arch="roberta_large", layers=layers, embed_dim=dim, ffn_embed_dim=3 * dim, attention_heads=heads,
        max_positions=64, token_dropout=token_dropout, emb_layer_norm_before=norm,
    )  # fmt: skip
    model = fair.ProteinBertModel(args, fair.Alphabet.from_architecture("ESM-1b"))
    model = lively(model)
    with torch.no_grad():  # as its loader does
        model.embed_tokens.weight[MASK] = 0
    return model


def released(model: Any, folder: Path, regression: bool = True, **changed: Any) -> Path:
    """Write a model as fair-esm's releases are: a Namespace of settings, prefixes, and the regression in another
    file.
    """
    one = hasattr(model, "args")
    args = model.args if one else None
    settings = Namespace(
        encoder_layers=model.num_layers, encoder_embed_dim=args.embed_dim if args else model.embed_dim,
        encoder_attention_heads=args.attention_heads if args else model.attention_heads,
        token_dropout=args.token_dropout if args else model.token_dropout,
    )  # fmt: skip
    if args:
        vars(settings).update(
            arch=args.arch, encoder_ffn_embed_dim=args.ffn_embed_dim, max_positions=args.max_positions
        )
    vars(settings).update(changed)
    state = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("contact_head"):
            state[("encoder." if name.startswith("lm_head") else "encoder.sentence_encoder.") + name] = tensor
    path = folder / ("esm1b_test.pt" if one else "esm2_test.pt")
    torch.save(
        {"args": settings, "model": state} if one else {"args": None, "cfg": {"model": settings}, "model": state}, path
    )
    if regression:
        head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("contact_head")}
        torch.save({"model": head}, folder / f"{path.stem}-contact-regression.pt")
    return path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kind", "token_dropout", "norm"),
    [("ESM-2", True, True), ("ESM-2", False, True), ("ESM-1b", True, True), ("ESM-1b", False, False)],
)
def test_fair_esm_has_the_same_numbers_and_comes_back(
    fair: Any, tmp_path: Path, kind: str, token_dropout: bool, norm: bool, size: tuple[int, int, int]
) -> None:
    theirs = fair_model(fair, kind, size, token_dropout, norm)
    found = load(str(released(theirs, tmp_path)))
    assert found.family is not None and (found.family.name, found.family.library) == (kind, "fair-esm")
    model, head, tokens = found.model, found.companion, chains(30, 17, 1)
    assert isinstance(model, SequenceModel)
    with torch.no_grad():
        expected = theirs(tokens, repr_layers=[size[0]], return_contacts=True)
        real = tokens != PAD
        assert same(model(tokens)[real], expected["logits"][real])
        assert same(model.hidden(tokens)[real], expected["representations"][size[0]][real])
        assert same(contacts(head, model, tokens)[:2], expected["contacts"][:2])  # theirs of one residue is 0 / 0

    folder = export(found, tmp_path / "back", "fair-esm")
    assert parity(found, folder, "fair-esm") < 1e-5
    (file,) = folder.glob("esm?*M.pt")
    again, _ = fair.pretrained.load_model_and_alphabet_local(file)  # strict: nothing missing, nothing unexpected
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ours = load(str(folder))
    assert torch.equal(ours.companion.weight, head.weight)
    assert all(torch.equal(a, b) for a, b in zip(ours.model.state_dict().values(), model.state_dict().values()))
    assert ours.model.config == model.config


@pytest.mark.parametrize("library", ["fair-esm", "hf"])
def test_frequencies_rounded_to_float16_are_respected(fair: Any, hf: Any, tmp_path: Path, library: str) -> None:
    """The released ESM-2 hold rounded frequencies; far from the beginning of a chain they count."""
    theirs = fair_model(fair, "ESM-2", (2, 64, 2))
    for layer in theirs.layers:
        rate = layer.self_attn.rot_emb.inv_freq
        layer.self_attn.rot_emb.inv_freq = rate.half().float()
    found = load(str(released(theirs, tmp_path)))
    assert found.model.config.transformer.rotary.half_precision
    tokens = chains(400)
    with torch.no_grad():
        expected = theirs(tokens, return_contacts=True)
        assert same(found.model(tokens), expected["logits"])
        assert same(contacts(found.companion, found.model, tokens), expected["contacts"])
        exact = dataclasses.replace(found.model.config.transformer, rotary=RotaryConfig())
        other = SequenceModel(dataclasses.replace(found.model.config, transformer=exact)).eval()
        other.load_state_dict(found.model.state_dict())
        assert not same(other(tokens), expected["logits"])  # so the rounding is more than noise

    folder = export(found, tmp_path / "out", library)
    assert parity(found, folder, library) < 1e-5
    assert load(str(folder)).model.config.transformer.rotary.half_precision


def test_other_frequencies_are_refused(fair: Any, tmp_path: Path) -> None:
    theirs = fair_model(fair, "ESM-2", (1, 32, 2))
    theirs.layers[0].self_attn.rot_emb.inv_freq *= 1.01
    with pytest.raises(UserError, match="neither those of base 10000 nor these rounded to float16"):
        load(str(released(theirs, tmp_path)))


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def hf_model(hf: Any, **options: Any) -> Any:
    config = hf.EsmConfig(
        vocab_size=33, mask_token_id=MASK, pad_token_id=PAD, max_position_embeddings=64,
        attn_implementation="eager", **options,
    )  # fmt: skip
    return lively(hf.EsmForMaskedLM(config))


def version_4(folder: Path, layers: int, prefix: str = "esm.") -> None:
    """Rewrite what transformers saved under the names of version 4, as released checkpoints have them."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {n.replace("gamma", "weight").replace("beta", "bias"): t for n, t in tensors.items()}
    rate = next((tensors.pop(name) for name in list(tensors) if name.endswith("inv_freq")), None)
    if rate is not None:
        for i in range(layers):
            tensors[f"{prefix}encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = rate.clone()
        tensors[prefix + "embeddings.position_embeddings.weight"] = torch.zeros(64, 32)  # in them, and used by nobody
    tensors[prefix + "embeddings.position_ids"] = torch.arange(64)[None]
    tensors["lm_head.decoder.weight"] = tensors[prefix + "embeddings.word_embeddings.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    size=st.sampled_from(SIZES), ffn=st.integers(8, 100), rotary=st.booleans(), dropout=st.booleans(),
    norm=st.booleans(), eps=st.sampled_from([1e-5, 1e-12]), theta=st.sampled_from([10_000.0, 500.0]),
    layout=st.sampled_from(["saved", "version 4", "version 5"]),
)  # fmt: skip
def test_hugging_face_has_the_same_numbers_and_comes_back(
    hf: Any, tmp_path_factory: pytest.TempPathFactory, size: tuple[int, int, int], ffn: int, rotary: bool,
    dropout: bool, norm: bool, eps: float, theta: float, layout: str,
) -> None:  # fmt: skip
    folder, (layers, dim, heads) = tmp_path_factory.mktemp("hf"), size
    theirs = hf_model(
        hf, num_hidden_layers=layers, hidden_size=dim, num_attention_heads=heads, intermediate_size=ffn,
        position_embedding_type="rotary" if rotary else "absolute", token_dropout=dropout, emb_layer_norm_before=norm,
        layer_norm_eps=eps, rope_theta=theta,
    )  # fmt: skip
    theirs.save_pretrained(folder)
    if layout == "version 4":
        version_4(folder, layers)
    elif layout == "version 5":
        state = {name: tensor for name, tensor in theirs.state_dict().items() if "decoder" not in name}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    found = load(str(folder))
    assert found.family is not None and found.family.name == ("ESM-2" if rotary else "ESM-1b")
    model, head, tokens = found.model, found.companion, chains(30, 17, 2)
    assert isinstance(model, SequenceModel)
    real = tokens != PAD
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=real.long(), output_hidden_states=True)
        assert same(model(tokens)[real], expected.logits[real])
        assert same(model.hidden(tokens)[real], theirs.esm(tokens, attention_mask=real.long())[0][real])
        assert same(contacts(head, model, tokens), theirs.predict_contacts(tokens, real.long()))

    out = export(found, folder / "back", "hf")
    assert parity(found, out, "hf") < 1e-5
    again, info = hf.EsmForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    _, info = hf.EsmModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    ours = load(str(out))
    assert ours.model.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(ours.model.state_dict().values(), model.state_dict().values()))
    assert torch.equal(ours.companion.weight, head.weight)
    assert ours.companion.bias == head.bias


def test_tokenizer_of_an_export(hf: Any, fair: Any, tmp_path: Path) -> None:
    theirs = fair_model(fair, "ESM-1b", (1, 32, 2))
    export(load(str(released(theirs, tmp_path))), tmp_path / "out", "hf")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(tokenizer).__name__ == "EsmTokenizer"
    assert tokenizer.model_max_length == 64
    letters = "MKTAYIAKUBZOX"
    assert tokenizer(letters)["input_ids"] == sequence_tokens(letters)[0].tolist()
    assert tokenizer("MK<mask>A")["input_ids"][3] == MASK == tokenizer.mask_token_id
    _, _, ids = fair.Alphabet.from_architecture("ESM-1b").get_batch_converter()([("", letters)])
    assert torch.equal(ids, sequence_tokens(letters))


def test_one_library_to_the_other_and_through_ours(hf: Any, fair: Any, tmp_path: Path) -> None:
    theirs = fair_model(fair, "ESM-2", (2, 32, 4))
    found = load(str(released(theirs, tmp_path)))
    for library in ("hf", "triune", "fair-esm"):
        folder = export(found, tmp_path / library, library)
        assert parity(found, folder, library) < 1e-5
        found = load(str(folder))
    (file,) = folder.glob("esm2_t2_*M.pt")
    again, _ = fair.pretrained.load_model_and_alphabet_local(file)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


def test_parity_sees_a_difference(fair: Any, tmp_path: Path) -> None:
    found = load(str(released(fair_model(fair, "ESM-2", (2, 32, 4)), tmp_path)))
    folder = export(found, tmp_path / "out", "fair-esm")
    found.model.embedding.weight.data[5] += 0.01
    assert parity(found, folder, "fair-esm") > 1e-4


# -- contacts ----------------------------------------------------------------------------------------------------------


def test_contacts_of_a_sequence_are_those_of_fair_esm(fair: Any, tmp_path: Path) -> None:
    from triune.cli import main

    theirs = fair_model(fair, "ESM-2", (2, 32, 4))
    path, letters = released(theirs, tmp_path), "MKTAYIAKQRQISFVKSHFSRQBZUOX"
    fasta, out = tmp_path / "x.fasta", tmp_path / "out"
    fasta.write_text(f">one\n{letters}\n")
    words = f"protein contacts {fasta} --pretrained {path} --out {out} --no-png --device cpu".split()
    assert main(words) == 0
    _, _, ids = fair.Alphabet.from_architecture("ESM-1b").get_batch_converter()([("one", letters)])
    with torch.no_grad():
        expected = theirs.predict_contacts(ids)[0]
    with np.load(out / "one.npz") as arrays:
        found = torch.from_numpy(arrays["contacts"])
    assert same(found.float(), expected)
    assert expected.std() > 0.05


def test_without_contact_regression(fair: Any, hf: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from triune.cli import main

    found = load(str(path := released(fair_model(fair, "ESM-2", (2, 32, 4)), tmp_path, regression=False)))
    assert found.companion is None
    fasta = tmp_path / "x.fasta"
    fasta.write_text(">one\nMKTAYIAKQRQ\n")
    assert main(["protein", "contacts", str(fasta), "--pretrained", str(path), "--out", str(tmp_path)]) == 2
    assert "has no contact regression" in capsys.readouterr().err
    # Both libraries insist on a regression: zeros, which come back as none.
    for library in ("hf", "fair-esm", "triune"):
        folder = export(found, tmp_path / library, library)
        assert parity(found, folder, library) < 1e-5
        assert load(str(folder)).companion is None
    _, info = hf.EsmForMaskedLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"]


def test_esm1b_has_a_longest_sequence(fair: Any, tmp_path: Path) -> None:
    theirs = fair_model(fair, "ESM-1b", (1, 32, 2))
    model = load(str(released(theirs, tmp_path))).model
    longest = chains(62)  # of 64 positions two are those of <cls> and <eos>
    with torch.no_grad():
        assert same(model(longest), theirs(longest)["logits"])
    with pytest.raises(UserError, match="63 residues, but this model has learned positions for 62"):
        model(chains(63))


# -- what users do -----------------------------------------------------------------------------------------------------


def refused(path: Path | str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(str(path))


def test_damaged_and_dangerous_files(fair: Any, tmp_path: Path) -> None:
    path = released(fair_model(fair, "ESM-2", (1, 32, 2)), tmp_path)
    regression = tmp_path / "esm2_test-contact-regression.pt"
    torch.save(
        {"model": {"contact_head.regression.weight": torch.ones(1, 3), "contact_head.regression.bias": torch.ones(1)}},
        regression,
    )
    refused(path, r"'contact_head.regression.weight' of .* is \(1, 3\)")
    torch.save([1], regression)
    refused(path, "holds no contact regression")
    regression.write_bytes(regression.read_bytes()[:300])
    refused(path, "esm2_test-contact-regression.pt' cannot be read")
    regression.unlink()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "cut short or damaged")
    torch.save({"model": {"a": torch.ones(1)}, "cfg": {"model": Dangerous()}}, path)
    refused(path, "could run code when it is read")
    torch.save({"weights": torch.ones(1)}, path)
    refused(
        path, "an unknown architecture, which is not supported as a protein language model; supported are ESM-2, ESM-1b"
    )


class Dangerous:
    """Not a plain record."""


def test_wrong_sizes_and_other_models_of_fair_esm(fair: Any, tmp_path: Path) -> None:
    theirs = fair_model(fair, "ESM-2", (2, 32, 4))
    refused(released(theirs, tmp_path, encoder_layers=3), "missing: layers.2.")
    refused(released(theirs, tmp_path, encoder_layers=1), "unexpected: layers.1.")
    refused(
        released(theirs, tmp_path, encoder_embed_dim=64), r"\(33, 32\) there and \(33, 64\) here|neither those of base"
    )
    refused(released(theirs, tmp_path, encoder_layers=None), "does not say its layers")
    one = released(fair_model(fair, "ESM-1b", (1, 32, 2)), tmp_path, arch="msa_transformer")
    refused(one, "fair-esm's msa_transformer, which is not supported; supported are ESM-2, ESM-1b and ESM-1v")


def test_wrong_folders_of_hugging_face(hf: Any, tmp_path: Path) -> None:
    theirs = hf_model(hf, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=32)
    theirs.save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    settings, tensors = json.loads(config.read_text()), load_file(weights)

    def configured(**changed: Any) -> None:
        config.write_text(json.dumps({**settings, **changed}))

    configured(model_type="gpt2")
    refused(tmp_path, "is gpt2, which is not supported as a protein language model; supported are ESM-2, ESM-1b")
    configured(is_folding_model=True)
    refused(tmp_path, "is_folding_model True, but only")
    configured(mask_token_id=4)
    refused(tmp_path, "mask_token_id 4")
    configured(position_embedding_type="relative_key")
    refused(tmp_path, "is esm, which is not supported")
    configured(hidden_size=None)
    refused(tmp_path, "config.json of .* is not complete")
    configured(vocab_size=20)
    refused(tmp_path, "vocab_size is 20")
    configured()
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY[:4], "A", *VOCABULARY[5:]]))
    refused(tmp_path, "line 5 is 'A', but must be 'L'; give the vocab.txt")
    (tmp_path / "vocab.txt").unlink()
    save_file({**tensors, "lm_head.decoder.weight": torch.randn(33, 32)}, weights)
    refused(tmp_path, "an output layer of its own")
    theirs.esm.save_pretrained(tmp_path)
    refused(tmp_path, "has no language-model head; save it from EsmForMaskedLM")
    weights.write_bytes(weights.read_bytes()[:200])
    refused(tmp_path, "cut short or damaged")
    weights.unlink()
    refused(tmp_path, "has a config.json but no weights")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    def model(**changed: Any) -> SequenceModel:
        core = {"dim": 32, "depth": 1, "heads": 2, **changed}
        return SequenceModel(SequenceConfig(TransformerConfig(**core)))

    with pytest.raises(
        UserError,
        match=r"no such ESM there: transformer\.norm 'rmsnorm', .*transformer\.ffn 'swiglu'.*it can be for triune",
    ):
        export(model(norm="rmsnorm", ffn="swiglu", ffn_dim=128), tmp_path / "x", "hf")
    with pytest.raises(
        UserError, match=r"'fair-esm' \(there is no such ESM there: transformer\.ffn_dim 64\); it can be for hf, triune"
    ):
        export(model(ffn_dim=64), tmp_path / "x", "fair-esm")
    with pytest.raises(
        UserError, match=r"'timm' \(it is no library of protein language models\); it can be for fair-esm, hf"
    ):
        export(model(), tmp_path / "x", "timm")
    assert not (tmp_path / "x").exists()


def test_a_failed_export_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SequenceModel(SequenceConfig(esm_transformer("tiny")))
    export(model, tmp_path / "x", "fair-esm")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export(model, tmp_path / "x", "fair-esm")
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_targets_of_lora_adapters() -> None:
    """The family's table says where a linear layer of ours lies in theirs."""
    (family,) = (family for family in FAMILIES if (family.name, family.library) == ("ESM-2", "hf"))
    model = SequenceModel(SequenceConfig(esm_transformer("tiny")))
    targets = family.weights(model.config).targets(model)
    assert targets["transformer.blocks.1.attn.q"].module == "esm.encoder.layer.1.attention.self.query"
    assert targets["transformer.blocks.0.ffn.down"].module == "esm.encoder.layer.0.output.dense"


@pytest.mark.parametrize("shared", [True, False])
def test_the_mask_row_of_esm_1b_is_that_of_its_own_library(fair: Any, tmp_path: Path, shared: bool) -> None:
    """fair-esm zeroes the row in place, so in the output layer too where a file stores both as one matrix."""
    model = fair_model(fair, "ESM-1b", (2, 32, 4))
    with torch.no_grad():
        model.embed_tokens.weight[MASK] = torch.randn(32)
    path = released(model, tmp_path)
    if not shared:
        whole = torch.load(path, weights_only=False)
        whole["model"]["encoder.lm_head.weight"] = whole["model"]["encoder.lm_head.weight"].clone()
        torch.save(whole, path)
    assert parity(load(str(path)), path, "fair-esm") <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parity_of_files_of_half_precision_is_that_of_their_weights(
    hf: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    shape = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    hf_model(hf, position_embedding_type="absolute", **shape).to(dtype).save_pretrained(tmp_path)
    assert parity(load(str(tmp_path)), tmp_path, "hf") <= 1e-5
