"""`triune lens` on language models: the numbers it prints are those of the functions, and mistakes are sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.lens.edit import lens
from triune.lens.command import main as lens_main
from triune.text.fewshot import LABELS, PATTERNS, prompts
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer

TEXT = "abcabcabd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = Tokenizer.bytes()
    core = TransformerConfig(dim=16, depth=2, heads=2, causal=True, context=64)
    model = LanguageModel(LanguageModelConfig(tokenizer.vocab_size, core, embedding_std=1.0))
    with torch.no_grad():
        for block in model.transformer.blocks:
            for part in (block.attn.q, block.attn.k, block.attn.v, block.attn.out):  # type: ignore[union-attr]
                part.weight.normal_(std=0.6)  # so that heads do something
    model.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def asked(folder: Path, question: str, *words: str) -> dict:
    out = folder.parent / "out.json"
    assert main(["lens", question, str(folder), *words, "--json", str(out), "--overwrite"]) == 0
    return json.loads(out.read_text())


def load(folder: Path) -> tuple[LanguageModel, torch.Tensor]:
    model, tokenizer = LanguageModel.from_pretrained(folder).eval(), Tokenizer.load(folder)
    return model, torch.tensor([tokenizer.beginning + tokenizer.encode(TEXT).tolist()])


def log_p(model: LanguageModel, ids: torch.Tensor) -> float:
    with torch.no_grad():
        return float(model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean())


def test_heads_have_the_effects_of_their_absence(folder: Path) -> None:
    found = asked(folder, "heads", TEXT, "--how", "zero")
    model, ids = load(folder)
    assert found["whole"] == pytest.approx(log_p(model, ids), abs=1e-6)
    z = {}
    for layer in range(2):
        for head in range(2):
            with lens(model, edit={f"{layer}.z": lambda x, head=head: x * (torch.arange(2) != head)[:, None]}):
                z[layer, head] = found["whole"] - log_p(model, ids)
    for (layer, head), effect in z.items():
        assert found["effects"][layer][head] == pytest.approx(effect, abs=1e-6)
    assert {"induction", "previous", "first"} <= set(found["scores"]) == set(found["rank_correlations"])
    assert any("Rank correlation" in note for note in found["notes"])


def test_effects_are_estimated_by_one_backward_pass(folder: Path) -> None:
    """The estimate is the slope of the score on the way from the values of a head to their mean."""
    from triune.core.lens.ablate import estimated_effects

    model, ids = load(folder)
    model.double()
    with lens(model, keep=["1.z"]) as seen:
        model(ids)
    mean = seen["1.z"][0].mean(0)
    near = seen["1.z"] + 1e-4 * (mean - seen["1.z"])

    def score() -> torch.Tensor:
        return model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean()

    found = estimated_effects(model, score, {"1.z": mean})["1.z"]
    for head in range(2):

        def moved(z: torch.Tensor, head: int = head) -> torch.Tensor:
            return torch.where((torch.arange(2) == head)[:, None], near, z)

        before = log_p(model, ids)
        with lens(model, edit={"1.z": moved}):
            slope = (before - log_p(model, ids)) / 1e-4
        assert float(found[head]) == pytest.approx(slope, rel=1e-3)


def test_sets_stand_beside_random_sets(folder: Path) -> None:
    found = asked(folder, "ablate", TEXT, "--controls", "3")
    assert [len(one["parts"]) for one in found["sets"]] == [1, 2]
    assert all(len(one["controls"]) == 3 for one in found["sets"]) and found["by"] == "induction"
    found = asked(folder, "ablate", TEXT, "--parts", "1.hidden:3,1.hidden:5", "--how", "zero", "--controls", "2")
    model, ids = load(folder)
    keep = torch.ones(model.config.transformer.ffn_dim or 0)
    keep[[3, 5]] = 0
    with lens(model, edit={"1.hidden": lambda x: x * keep}):
        assert found["sets"][0]["without"] == pytest.approx(log_p(model, ids), abs=1e-6)


def test_patching_all_positions_one_by_one(folder: Path) -> None:
    found = asked(folder, "patch", "abcabcabd", "abcabcabe", "--answer", "x", "--against", "y")
    assert len(found["effects"]) == 2 and len(found["effects"][0]) == len(found["labels"])
    assert found["effects"][-1][-1] == pytest.approx(1)  # the last block's output at the end is the answer
    assert found["effects"][0][0] == pytest.approx(0)  # the first token is the same in both
    assert found["labels"][-1] == "*d"


def test_each_depth_ends_at_the_answer(folder: Path) -> None:
    found = asked(folder, "depth", TEXT)
    model, ids = load(folder)
    table = found["tables"][0]
    assert [row[0] for row in table["rows"]] == [0, 1, 2] and table["rows"][-1][3] == 1
    assert found["curves"]["of the next tokens, mean"][-1] == pytest.approx(log_p(model, ids), abs=1e-5)


def test_depth_says_what_each_head_adds(folder: Path) -> None:
    found = asked(folder, "depth", TEXT, "--answer", "a", "--against", "b")
    model, ids = load(folder)
    a, b = (Tokenizer.load(folder).encode(word).tolist()[0] for word in "ab")
    with torch.no_grad():
        logits = model(ids)[0, -1]
    assert found["score"] == pytest.approx(float(logits[a] - logits[b]), abs=1e-5)
    assert sum(found["direct"].values()) + found["rest"] == pytest.approx(found["score"])
    assert torch.tensor(found["direct_by_head"]).shape == (2, 2) and abs(found["rest"]) < 1e-5  # no bias, no curvature


def test_edges_by_rule_and_by_list(folder: Path) -> None:
    model, ids = load(folder)
    tokens = ids.shape[1]
    before = torch.ones(tokens, tokens, dtype=torch.bool).tril(-1) & ~torch.ones(tokens, tokens).tril(-2).bool()
    found = asked(folder, "ablate", TEXT, "--edges", "previous", "--parts", "1.0", "--controls", "2")
    one = torch.stack([before, torch.zeros_like(before)])
    with lens(model, cut={1: one}):
        assert found["sets"][0]["without"] == pytest.approx(log_p(model, ids), abs=1e-6)
    assert len(found["sets"][0]["controls"]) == 2 and found["tables"][0]["rows"][0][1] == tokens - 1
    found = asked(folder, "ablate", TEXT, "--edges", "4>2,5>*", "--controls", "0")
    listed = torch.zeros(tokens, tokens, dtype=torch.bool)
    listed[4, 2] = listed[5] = True
    with lens(model, cut={0: listed, 1: listed}):
        assert found["sets"][0]["without"] == pytest.approx(log_p(model, ids), abs=1e-6)


def test_labels_of_few_shot_patterns(tmp_path: Path) -> None:
    for name, shape in PATTERNS.items():
        for text, right in prompts(shape, seed=1):
            *examples, last = text.split("\n")
            for line, kind in [*((line, LABELS.index(line.partition(":")[2])) for line in examples), (last, right)]:
                letters = line.partition(":")[0].split(" ")
                same = [letters[i] == letters[j] for i in range(len(shape)) for j in range(i)]
                assert same == [kind == 0 and shape[i] == shape[j] for i in range(len(shape)) for j in range(i)], name
    tokenizer = Tokenizer.train_bpe(["A B A B: Foo\nC D E F: Bar\n" * 9], 300)
    core = TransformerConfig(dim=16, depth=2, heads=2, causal=True, context=256)
    model = LanguageModel(LanguageModelConfig(tokenizer.vocab_size, core, embedding_std=1.0)).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    found = asked(tmp_path / "model", "ablate", "--prompts", "repetition", "--top", "1", "--controls", "1")
    again = []
    for text, right in prompts(PATTERNS["repetition"], 0):
        ids = torch.tensor([tokenizer.beginning + tokenizer.encode(text).tolist()])
        labels = [tokenizer.encode(label).tolist()[0] for label in LABELS]
        with torch.no_grad():
            again.append(int(model(ids)[0, -1, labels].argmax()) == right)
    assert found["whole"] == pytest.approx(sum(again) / len(again)) and found["measure"] == "accuracy"


def test_a_model_without_heads_is_told_so(tmp_path: Path) -> None:
    tokenizer = Tokenizer.bytes()
    core = TransformerConfig(dim=16, depth=2, heads=2, causal=True, context=64, mixer="mamba2")
    LanguageModel(LanguageModelConfig(tokenizer.vocab_size, core, embedding_std=1.0)).save_pretrained(
        tmp_path / "model"
    )
    tokenizer.save(tmp_path / "model")
    for words in (["heads"], ["ablate"], ["ablate", "--edges", "3>1"]):
        with pytest.raises(UserError, match="has no heads; ask for depth or patch"):
            lens_main([words[0], str(tmp_path / "model"), TEXT, *words[1:]])
    found = asked(tmp_path / "model", "ablate", TEXT, "--parts", "0.mixed", "--controls", "0")
    assert found["sets"][0]["without"] != found["whole"]


def test_what_is_hidden_moves_later_places_only(folder: Path) -> None:
    found = asked(folder, "attention", TEXT)
    effects, weights = (
        torch.tensor([[float("nan") if v is None else v for v in row] for row in found[name]])
        for name in ("effects", "weights")
    )
    tokens = len(effects)
    assert effects.isnan().equal(torch.ones(tokens, tokens).triu().bool())
    torch.testing.assert_close(weights.sum(1), torch.ones(tokens), atol=1e-4, rtol=0)
    model, ids = load(folder)
    gone = torch.zeros(tokens, tokens, dtype=torch.bool)
    gone[3:, 2] = True
    with torch.no_grad():
        whole = model(ids)[0].double().log_softmax(-1)
        with lens(model, cut={0: gone, 1: gone}):
            without = model(ids)[0].double().log_softmax(-1)
    divergence = (whole.exp() * (whole - without)).sum(-1)
    torch.testing.assert_close(effects[3:, 2].double(), divergence[3:], atol=1e-6, rtol=1e-3)


def test_random_tokens_that_repeat_and_texts_of_different_length(folder: Path) -> None:
    found = asked(folder, "heads", "--effects", "none")
    assert any("random tokens" in note for note in found["notes"])
    padded = asked(folder, "heads", TEXT, TEXT[:-3], "--effects", "none")
    alone = [asked(folder, "heads", text, "--effects", "none")["scores"]["previous"] for text in (TEXT, TEXT[:-3])]
    _, ids = load(folder)
    long, short = ids.shape[1] - 1, ids.shape[1] - 4  # queries with a token before them
    together = (long * torch.tensor(alone[0]) + short * torch.tensor(alone[1])) / (long + short)
    torch.testing.assert_close(torch.tensor(padded["scores"]["previous"]), together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["heads", "F", "ab", "--budget", "0.0000001"], "--budget is"),
        (["ablate", "F", TEXT, "--parts", "5.1"], "Layer 5 is named, but the model has layers 0 to 1"),
        (["ablate", "F", TEXT, "--parts", "1.7"], "Head 7 is named, but each layer has heads 0 to 1"),
        (["ablate", "F", TEXT, "--parts", "1.hiden:3"], "There is no point '1.hiden' .did you mean '1.hidden'"),
        (["ablate", "F", TEXT, "--parts", "1.hidden:3000"], "has numbers 0 to"),
        *((["ablate", "F", TEXT, "--top", odd], "must be a number from 1 to") for odd in ("nan", "inf", "1.5", "nan%")),
        (["ablate", "F", TEXT, "--top", "3"], "not as many others"),
        (["ablate", "F", TEXT, "--by", "inductoin"], "did you mean 'induction'"),
        (["ablate", "F", TEXT, "--parts", "1.0", "--top", "1"], "--parts and --top are both given"),
        (["ablate", "F", TEXT, "--edges", "previos"], "did you mean 'previous'"),
        (["ablate", "F", TEXT, "--edges", "3>x"], "must have edges such as"),
        (["ablate", "F", TEXT, "--edges", "3>99"], "has places 0 to"),
        (["ablate", "F", TEXT, "--edges", "3>5"], "no token of a causal model sees a later one"),
        (["ablate", "F", TEXT, "--edges", "3>1", "--parts", "1.ffn_out"], "edges are cut in heads"),
        (["ablate", "F", TEXT, "--edges", "3>1", "--top", "2"], "--edges and --top are both given"),
        (["patch", "F", "abc", "abcd"], "they must have equally many"),
        (["patch", "F", "abc"], "patching takes two"),
        (["patch", "F", "abc", "abc"], "are equal"),
        (["patch", "F", "abc", "abd", "--answer", "xx"], "must be one"),
        (["patch", "F", "abc", "abd", "--answer", "x", "--against", "x"], "are both 'x', so that nothing tells them"),
        (["depth", "F", "abc", "--answer", "x", "--against", "x"], "are both 'x', so that nothing tells them"),
        (["heads", "F", "notes.txt"], "'notes.txt' is named like a file, but there is none"),
        (["patch", "F", "abc", "abd", "--path", "1.0", "0.q:1"], "end in a later layer"),
        (["attention", "F", TEXT, "--head", "1.x"], "must be LAYER or LAYER.HEAD"),
        (["attention", "F", TEXT, "--query", "99"], "--query is 99"),
        (["heads", "F", TEXT, "--structure", "x.pdb"], "are for proteins"),
        (["heads", "F", TEXT, "--png", "x.jpg"], "must end in .png"),
        (["heads", "F", "x" * 100], "must have from 2 to 64"),
        (["look", "F"], "Unknown question 'look'"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(words: list[str], sentence: str, folder: Path) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        lens_main([str(folder) if word == "F" else word for word in words])
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
