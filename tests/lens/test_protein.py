"""`triune lens` on proteins: heads judged by structures, the categorical Jacobian, and the points of the pair stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.lens.ablate import ablation
from triune.core.lens.decode import direct
from triune.core.lens.edit import lens
from triune.core.lens.points import points
from triune.core.lens.record import record_attention
from triune.lens.command import main as lens_main
from triune.protein.language.contact_head import HEAD, ContactHead
from triune.protein.language.jacobian import FIRST, categorical_jacobian, jacobian_contacts
from triune.protein.language.model import SequenceConfig, SequenceModel, sequence_tokens
from triune.protein.lens.chains import builtin
from triune.protein.lens.pair import in_training
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel

CHAIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


def language() -> SequenceModel:
    torch.manual_seed(0)
    core = TransformerConfig(dim=16, depth=2, heads=2, norm_eps=1e-5, ffn="gelu")
    model = SequenceModel(SequenceConfig(core)).eval()
    for parameter in model.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def pair(**options) -> PairModel:
    torch.manual_seed(0)
    sizes = {"dim": 8, "depth": 2, "msa_depth": 0, "triangle_dim": 8, "triangle_heads": 2, "head_dim": 4}
    model = PairModel(PairConfig(**(sizes | options))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def asked(folder: Path, question: str, *words: str) -> dict:
    out = folder.parent / "out.json"
    assert main(["lens", question, str(folder), *words, "--json", str(out), "--overwrite"]) == 0
    return json.loads(out.read_text())


def fasta(folder: Path, *chains: str) -> str:
    file = folder / "chains.fasta"
    file.write_text("".join(f">c{number}\n{chain}\n" for number, chain in enumerate(chains)))
    return str(file)


def test_the_jacobian_is_that_of_one_exchange_after_the_other() -> None:
    model, tokens = language(), sequence_tokens(CHAIN[:9])
    found = categorical_jacobian(model, tokens, batch_size=7)
    letters = slice(FIRST, FIRST + 20)
    with torch.no_grad():
        whole = model(tokens)[0, 1:-1, letters]
        for at, letter in [(0, 0), (4, 19), (8, 7)]:
            changed = tokens.clone()
            changed[0, at + 1] = FIRST + letter
            torch.testing.assert_close(
                found[at, letter], model(changed)[0, 1:-1, letters] - whole, atol=1e-5, rtol=1e-4
            )
    contacts = jacobian_contacts(found)
    torch.testing.assert_close(contacts, contacts.T)
    assert not contacts.diagonal().any()


def test_a_planted_pair_is_the_highest_contact() -> None:
    class Coupled(torch.nn.Module):
        """Logits at residue 2 depend on the letter at residue 10 and the other way round."""

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            one = torch.nn.functional.one_hot(tokens, 33).float()
            logits = 0.1 * one
            logits[:, 3] += one[:, 11]
            logits[:, 11] += one[:, 3]
            return logits

    contacts = jacobian_contacts(categorical_jacobian(Coupled(), sequence_tokens(CHAIN[:14])))
    assert divmod(int(contacts.argmax()), 14) == (2, 10)


def test_a_language_model_beside_structures(tmp_path: Path) -> None:
    model = language()
    model.save_pretrained(tmp_path / "model")
    head = ContactHead(2, 2)
    head.weight.fill_(0.5)
    head.save_pretrained(tmp_path / "model" / HEAD)
    found = asked(tmp_path / "model", "heads", "--effects", "none")
    assert {"contacts", "previous", "next", "first", "last", "P@L/5"} <= set(found["scores"])
    with torch.no_grad():
        shown = asked(tmp_path / "model", "depth")
    columns = shown["tables"][0]["columns"]
    assert columns[-2:] == ["best head's P@L/5", "contact head up to here"]
    best = torch.tensor(found["scores"]["P@L/5"]).max(1).values
    assert [row[-2] for row in shown["tables"][0]["rows"][1:]] == pytest.approx(best.tolist(), abs=1e-6)
    with pytest.raises(UserError, match="takes one chain"):
        lens_main(["ablate", str(tmp_path / "model"), "--edges", "contacts", "--measure", "contact precision"])
    whole = asked(tmp_path / "model", "ablate", "--top", "1", "--controls", "1", "--measure", "contact precision")[
        "whole"
    ]
    assert shown["tables"][0]["rows"][-1][-1] == pytest.approx(whole, abs=1e-6)  # all layers are the whole head


def test_used_beside_read_of_one_chain(tmp_path: Path) -> None:
    language().save_pretrained(tmp_path / "model")
    found = asked(tmp_path / "model", "attention", fasta(tmp_path, CHAIN), "--html", str(tmp_path / "x.html"))
    effects = found["effects"]
    assert len(effects) == len(CHAIN) + 2 and effects[0][1] is None and effects[1][2] > 0
    assert found["tables"][1]["rows"][0][0] == "categorical Jacobian"
    page = (tmp_path / "x.html").read_text()
    assert len(page) < 5_000_000 and '"kind": "square"' in page
    two = fasta(tmp_path, CHAIN, CHAIN.replace("HFSR", "HFAR"))
    patched = asked(tmp_path / "model", "patch", two, "--where", "resid_pre")
    assert patched["labels"][20] == "*S20"
    assert patched["effects"][0][20] == pytest.approx(1)  # before the first block the chains differ there alone
    assert patched["effects"][0][1] == pytest.approx(0)


def test_points_of_the_pair_stack(tmp_path: Path) -> None:
    model = pair()
    tokens = torch.randint(20, (1, 12))
    assert [name for name in points(model) if name.startswith("1.")] == [
        f"1.{name}"
        for name in (
            "resid_pre", "outgoing", "incoming", "start_z", "start_out", "end_z", "end_out", "transition", "resid_post"
        )
    ]  # fmt: skip
    with torch.no_grad():
        before = model(tokens).contacts
        with lens(model, keep=["*"]) as seen:
            model(tokens)
        updates = ("outgoing", "incoming", "start_out", "end_out", "transition")
        total = seen["1.resid_pre"] + sum(seen[f"1.{name}"] for name in updates)
        torch.testing.assert_close(total, seen["1.resid_post"])
        assert seen["1.start_z"].shape == (1, 12, 12, 2, 4)
        attention = model.blocks[1].attentions[0].attention  # type: ignore[union-attr]
        with lens(model, edit={"1.start_z": lambda z: z * torch.tensor([1.0, 0.0])[:, None]}):
            found = model(tokens).contacts
        assert torch.equal(model(tokens).contacts, before) and not torch.equal(found, before)
        attention.out.weight[:, 4:] = 0  # the columns of head 1
        torch.testing.assert_close(found, model(tokens).contacts)
    done = ablation(model, lambda: model(tokens).contacts.mean(), [("0.end_z", 1)], controls=3)  # type: ignore[list-item]
    assert done.effect != 0 and len(done.controls) == 3


def test_the_pair_model_by_depth_and_head(tmp_path: Path) -> None:
    model = pair()
    model.save_pretrained(tmp_path / "model")
    shown = asked(tmp_path / "model", "depth", fasta(tmp_path, CHAIN))
    divergence = shown["curves"]["divergence from the answer (nats)"]
    assert len(divergence) == 3 and divergence[0] > divergence[-1] == pytest.approx(0, abs=1e-9)
    found = asked(tmp_path / "model", "heads", fasta(tmp_path, CHAIN), "--how", "zero")
    assert torch.tensor(found["effects"]).shape == (2, 4) and found["measure"] == "likeness"
    sets = asked(tmp_path / "model", "ablate", fasta(tmp_path, CHAIN), "--parts", "0.outgoing", "--controls", "1")[
        "sets"
    ]
    assert sets[0]["without"] < 0


def test_patches_and_what_is_used_in_the_pair_model(tmp_path: Path) -> None:
    pair(recycles=0).save_pretrained(tmp_path / "model")
    short = CHAIN[:20]
    two = fasta(tmp_path, short, short.replace("HFS", "HFA"))
    found = asked(tmp_path / "model", "patch", two)
    assert len(found["effects"]) == 2 and len(found["effects"][0]) == 20 and found["labels"][19] == "*S20"
    # Behind the last block each pair is read by itself, in both directions, so the rows bring back all together.
    assert sum(found["effects"][1]) == pytest.approx(1, abs=1e-4)
    by_head = asked(tmp_path / "model", "patch", two, "--where", "start_z")["by_head"]
    assert torch.tensor(by_head).shape == (2, 2)
    one = asked(tmp_path / "model", "attention", fasta(tmp_path, CHAIN[:14]), "--html", str(tmp_path / "x.html"))
    weights = torch.tensor(one["weights"])
    torch.testing.assert_close(weights.sum(1), torch.ones(14), atol=1e-4, rtol=0)  # all that a row reads is 1
    effects = torch.tensor([[float("nan") if v is None else v for v in row] for row in one["effects"]])
    assert effects.isnan().equal(torch.eye(14, dtype=torch.bool)) and float(effects.nan_to_num().min()) >= 0
    head = asked(tmp_path / "model", "attention", fasta(tmp_path, CHAIN[:14]), "--head", "1.2")
    assert head["scope"] == "layer 1, end_z:0" and max(v or 0 for v in head["effects"][0]) > 0
    cut = asked(tmp_path / "model", "ablate", fasta(tmp_path, short), "--edges", "*>3", "--parts", "0.1")["sets"][0]
    assert cut["without"] < 0 and cut["parts"] == [["0.start_z", 1]]
    said = asked(tmp_path / "model", "depth", fasta(tmp_path, short))
    assert sum(said["direct"].values()) + said["rest"] == pytest.approx(said["score"])


def test_an_edge_of_the_pair_stack_that_is_cut_carries_nothing() -> None:
    model, tokens = pair(recycles=0), torch.randint(20, (1, 9))
    name = "blocks.1.attentions.0.attention"
    edges = torch.zeros(2, 9, 9, dtype=torch.bool)
    edges[1, :, 4] = True
    attention = model.get_submodule(name)
    with torch.no_grad():
        with record_attention(model, lambda _, weights: weights) as seen, lens(model, keep=["1.start_z"]) as kept:
            model(tokens)
        with lens(model, cut={"1.start_z": edges}, keep=["1.start_z"]) as found:
            model(tokens)
    values = kept["1.start_z"]
    torch.testing.assert_close(found["1.start_z"][..., 0, :], values[..., 0, :])
    weights = seen[name][0, :, 1].clone()  # [rows, queries, keys]
    weights[..., 4] = 0
    weights /= weights.sum(-1, keepdim=True)
    handle: list[torch.Tensor] = []
    hook = attention.register_forward_pre_hook(lambda module, args: handle.append(args[0]))
    with torch.no_grad():
        model(tokens)
    hook.remove()
    v = attention.v(handle[0])[0].unflatten(-1, (2, 4))[..., 1, :]  # type: ignore[operator]
    torch.testing.assert_close(found["1.start_z"][0, :, :, 1], weights @ v, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="can be cut at heads alone"), lens(model, cut={"1.outgoing": edges}):
        model(tokens)


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    language().save_pretrained(tmp_path / "model")
    pair().save_pretrained(tmp_path / "pair")
    chain = fasta(tmp_path, CHAIN)
    (tmp_path / "other").mkdir()
    two = fasta(tmp_path / "other", CHAIN, CHAIN[:-2])
    for words, sentence in [
        (["patch", "model", chain], "patching takes two"),
        (["patch", "model", two], "must have equally many"),
        (["patch", "model", two, "--answer", "A"], "does not have"),
        (["heads", "model", "--structure", "x.pdb"], "without a sequence"),
        (["heads", "model", chain, "--chain", "A"], "was not given"),
        (["heads", "model", "none.fasta"], "none.fasta"),
        (["heads", "model", chain, "--measure", "contact precision"], "must be log-probability or accuracy"),
        (["attention", "pair", chain, "--head", "1.4"], "has heads 0 to 3"),
        (["attention", "pair", chain, "--head", "2"], "has layers 0 to 1"),
        (["patch", "pair", chain], "patching takes two"),
        (["patch", "pair", two], "must have equally many"),
        (["depth", "pair", chain, "--answer", "A"], "does not have"),
        (["ablate", "pair", chain, "--edges", "previous"], "a rule has no meaning"),
        (["ablate", "pair", chain, "--parts", "0.outgoin"], "did you mean '0.outgoing'"),
    ]:
        with pytest.raises(UserError, match=sentence) as error:
            lens_main([words[0], str(tmp_path / words[1]), *words[2:]])
        assert str(error.value).endswith(".")


def test_what_each_head_of_the_pair_stack_adds_directly() -> None:
    model, tokens = pair(recycles=0), torch.randint(20, (1, 12))
    attention = model.blocks[1].attentions[1].attention  # type: ignore[union-attr]
    with torch.no_grad():
        for block in model.blocks:
            for part in block.attentions:  # type: ignore[union-attr]
                part.attention.out.bias.zero_()  # type: ignore[union-attr]
        attention.out.weight[:, 4:] = 0  # type: ignore[union-attr]  # the columns of head 1

    def score() -> torch.Tensor:
        return model(tokens).contacts.sum()

    found = direct(model, score, model.head.norm)
    assert list(found.heads) == [f"{layer}.{side}_z" for layer in range(2) for side in ("start", "end")]
    for name, heads in found.heads.items():
        assert float(heads.sum()) == pytest.approx(found.parts[name.replace("_z", "_out")], rel=1e-4, abs=1e-5)
    assert float(found.heads["1.end_z"][1]) == 0 != float(found.heads["1.end_z"][0])
    with torch.no_grad():
        assert float(score()) == pytest.approx(found.score, rel=1e-6)


def test_heads_of_the_pair_model_while_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    chains, about = builtin()
    monkeypatch.setattr("triune.protein.lens.pair.builtin", lambda: (chains[:1], about))
    scores = in_training(pair(), None).scores()["P@L/5"]
    assert scores.shape == (2, 4) and bool(((scores >= 0) & (scores <= 1)).all()) and len(scores.unique()) > 1
    with pytest.raises(UserError, match="no triangle attention"):
        in_training(pair(triangle_heads=0), None)
