"""Vectors come back as they were written, and a run that was stopped loses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triune.core.embeddings.store import ENDINGS, read_vectors, write_vectors
from triune.core.embeddings.writer import Writer
from triune.core.errors import UserError

pa = pytest.importorskip("pyarrow")

NAMES = ["a b", "ü/é.png", "日本", '"q", it\'s', "z"]
VALUES = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
ABOUT = {"model": "m", "layer": 3, "pool": "mean"}
PLACES = {"layer": np.array([1, 1, 2, 2, 3], np.int32), "token": np.array([0, 1, 0, 1, -1], np.int32)}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("places", [{}, PLACES])
def test_what_is_written_is_read(tmp_path: Path, ending: str, places: dict[str, np.ndarray]) -> None:
    path = tmp_path / f"v{ending}"
    write_vectors(path, NAMES, VALUES, places, ABOUT)
    found = read_vectors(path)
    assert found.names == NAMES and found.about == ABOUT and not found.notes
    np.testing.assert_array_equal(found.values, VALUES)
    assert found.values.dtype == np.float32 and list(found.places) == list(places)
    for name, numbers in places.items():
        np.testing.assert_array_equal(found.places[name], numbers)
    assert found.label(3) == (NAMES[3] + " (layer 2, token 1)" if places else NAMES[3])


def test_many_rows(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((40_000, 3)).astype(np.float32)
    names = [f"n{i}" for i in range(len(values))]
    write_vectors(tmp_path / "v.parquet", names, values)
    found = read_vectors(tmp_path / "v.parquet")
    assert found.names == names and np.array_equal(found.values, values)


def test_vectors_of_other_programs(tmp_path: Path) -> None:
    from pyarrow import parquet

    lists = pa.array(VALUES.astype(float).tolist())
    parquet.write_table(pa.table({"id": NAMES, "n": [1, 2, 3, 4, 5], "emb": lists}), tmp_path / "v.parquet")
    found = read_vectors(tmp_path / "v.parquet")
    assert found.names == NAMES and found.notes == ["vectors are 'emb', names 'id'"]
    np.testing.assert_array_equal(found.values, VALUES)
    np.savez(tmp_path / "v.npz", x=VALUES.astype(np.float16))
    assert read_vectors(tmp_path / "v.npz").names[:2] == ["row 1", "row 2"]
    np.save(tmp_path / "v.npy", VALUES)
    assert "called by their number" in read_vectors(tmp_path / "v.npy").notes[0]
    (tmp_path / "v.npy.names.txt").write_text("a\nb\nc\nd\ne\n")
    assert read_vectors(tmp_path / "v.npy").names == list("abcde")


def _broken(folder: Path) -> dict[str, tuple[str, str]]:
    from pyarrow import parquet

    lists = VALUES.tolist()
    tables = {
        "two": {"name": NAMES, "x": lists, "y": lists},
        "ragged": {"name": NAMES, "vector": [*lists[:4], [1.0]]},
        "null": {"name": NAMES, "vector": [*lists[:4], None]},
        "unnamed": {"name": [*NAMES[:4], None], "vector": lists},
        "none": {"name": NAMES},
    }
    for name, columns in tables.items():
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet")
    np.save(folder / "flat.npy", VALUES[0])
    np.save(folder / "whole.npy", np.arange(6).reshape(2, 3))
    np.save(folder / "nan.npy", np.where(VALUES > 1, np.nan, VALUES))
    np.save(folder / "empty.npy", VALUES[:0])
    np.save(folder / "names.npy", VALUES)
    (folder / "names.npy.names.txt").write_text("a\nb\n")
    np.save(folder / "pickle.npy", np.array([{}], object), allow_pickle=True)
    (folder / "cut.npz").write_bytes(b"PK\x03\x04")
    (folder / "cut.parquet").write_bytes(b"PAR1")
    return {
        "two.parquet": ("several", "several (x, y)"),
        "ragged.parquet": ("lengths", "not equally long"),
        "null.parquet": ("an empty one", "is empty"),
        "unnamed.parquet": ("a name", "'name' of"),
        "none.parquet": ("no vectors", "has none"),
        "flat.npy": ("shape", "shape [7]"),
        "whole.npy": ("type", "int64"),
        "nan.npy": ("NaN", "is not finite"),
        "empty.npy": ("no rows", "holds no vectors"),
        "names.npy": ("another number", "5 vectors, but 2 names"),
        "pickle.npy": ("pickle", "cannot be read as a NumPy array"),
        "cut.npz": ("damaged", "cannot be read as a NumPy archive"),
        "cut.parquet": ("damaged", "cannot be read as Parquet"),
        "v.csv": ("no file", "cannot be read"),
    }


def test_files_that_hold_no_vectors_are_refused(tmp_path: Path) -> None:
    for name, (about, words) in _broken(tmp_path).items():
        with pytest.raises(UserError) as caught:
            read_vectors(tmp_path / name)
        text = str(caught.value)
        assert words in text and text.endswith(".") and "\n" not in text, (about, text)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_cannot_be_written_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"v{ending}"
    with pytest.raises(UserError, match="'a' is the name of two inputs"):
        write_vectors(path, ["a", "a"], VALUES[:2])
    with pytest.raises(UserError, match="vector of 'b' is not finite"):
        write_vectors(path, ["a", "b"], np.array([[1, 2], [np.inf, 0]], np.float32))
    if ending == ".npy":
        with pytest.raises(UserError, match="cannot stand on a line"):
            write_vectors(path, ["a\nb"], VALUES[:1])
    with pytest.raises(UserError, match="must end in"):
        write_vectors(tmp_path / "v.csv", ["a"], VALUES[:1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_stopped_run_goes_on(tmp_path: Path, ending: str) -> None:
    whole = tmp_path / f"whole{ending}"
    write_vectors(whole, NAMES, VALUES, about=ABOUT)
    path = tmp_path / f"v{ending}"
    first = Writer.open(path, ABOUT)
    first.add([NAMES[3], NAMES[1]], VALUES[[3, 1]])
    first.add([NAMES[4]], VALUES[[4]])
    assert not path.exists()
    again = Writer.open(path, ABOUT)  # as after the end of the process
    assert again.done == {NAMES[3], NAMES[1], NAMES[4]}
    with pytest.raises(UserError, match="name of two inputs"):
        again.add([NAMES[4]], VALUES[[4]])
    again.add([NAMES[0], NAMES[2]], VALUES[[0, 2]])
    assert again.close(NAMES) == 5
    assert path.read_bytes() == whole.read_bytes() or ending == ".npz"  # a zip archive holds the time
    found = read_vectors(path)
    assert found.names == NAMES and np.array_equal(found.values, VALUES) and found.about == ABOUT
    assert not (tmp_path / f"v{ending}.parts").exists()
    with pytest.raises(UserError, match=r"exists? already"):
        Writer.open(path, ABOUT)


def test_an_end_while_parts_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "v.npz"
    writer = Writer.open(path, ABOUT)
    writer.add(NAMES, VALUES)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("triune.core.embeddings.writer.shutil.rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    monkeypatch.undo()
    again = Writer.open(path, ABOUT)
    assert again.done == set(NAMES) and again.close() == 5
    assert read_vectors(path).names == NAMES


def test_rows_of_one_input_stay_in_order(tmp_path: Path) -> None:
    writer = Writer.open(tmp_path / "v.npz", {})
    token = np.array([0, 1, 2], np.int32)
    writer.add(["b", "b", "b"], VALUES[:3], {"token": token})
    writer.add(["a", "a"], VALUES[3:], {"token": token[:2]})
    assert writer.close(["a", "x", "b"]) == 5
    found = read_vectors(tmp_path / "v.npz")
    assert found.names == ["a", "a", "b", "b", "b"] and found.places["token"].tolist() == [0, 1, 0, 1, 2]
    np.testing.assert_array_equal(found.values, VALUES[[3, 4, 0, 1, 2]])


def test_parts_of_other_vectors(tmp_path: Path) -> None:
    Writer.open(tmp_path / "v.npz", ABOUT).add(NAMES, VALUES)
    with pytest.raises(UserError, match=r"another layer \(3, now 4\)"):
        Writer.open(tmp_path / "v.npz", {**ABOUT, "layer": 4})
    assert Writer.open(tmp_path / "v.npz", {**ABOUT, "layer": 4}, overwrite=True).done == set()
    (tmp_path / "w.npz.parts").mkdir()
    (tmp_path / "w.npz.parts" / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="thesis"):
        Writer.open(tmp_path / "w.npz", ABOUT, overwrite=True)
    assert (tmp_path / "w.npz.parts" / "thesis.tex").exists()
    with pytest.raises(UserError, match="There are no vectors"):
        Writer.open(tmp_path / "u.npz", ABOUT).close()


def test_an_input_that_changed_since_its_vector_was_made(tmp_path: Path) -> None:
    contents = {name: number for number, name in enumerate(NAMES)}
    path = tmp_path / "v.npz"
    Writer.open(path, ABOUT, mark=contents.__getitem__).add(NAMES[:3], VALUES[:3])
    assert Writer.open(path, ABOUT, mark=contents.__getitem__).done == set(NAMES[:3])
    contents[NAMES[1]] = 77
    with pytest.raises(UserError, match="has changed since its vector was made") as raised:
        Writer.open(path, ABOUT, mark=contents.__getitem__)
    assert repr(NAMES[1])[1:-1] in str(raised.value)
    anew = Writer.open(path, ABOUT, True, contents.__getitem__)
    assert anew.done == set()
    anew.add(NAMES, VALUES)
    assert anew.close(NAMES) == len(NAMES) and read_vectors(path).places == {}


def test_what_tells_that_an_input_of_embed_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triune import embed
    from triune.core.labelled.run import Inputs

    (tmp_path / "x.png").write_bytes(b"one")
    mark = embed._marks(Inputs(["x.png", "a text"], ["first", "second"], tmp_path))
    before = mark("first"), mark("second")
    assert before == (mark("first"), mark("second")) and before[0] != before[1]
    (tmp_path / "x.png").write_bytes(b"two")
    assert mark("first") != before[0] and mark("second") == before[1]
    monkeypatch.setattr(embed, "WHOLE", 2)
    large = mark("first")
    (tmp_path / "x.png").write_bytes(b"more")
    assert mark("first") != large
    assert embed._marks(Inputs(["another"], ["second"], tmp_path))("second") != before[1]
