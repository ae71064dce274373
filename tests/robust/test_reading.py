"""The readers that every room shares: regular files only, bounded, one sentence for what is damaged."""

from __future__ import annotations

import gzip
import os
import stat
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from triune.core import files
from triune.core.errors import UserError
from triune.core.files import (
    check_regular,
    kind_of,
    none_left_empty,
    open_regular,
    parse_json,
    parsing,
    read_arrays,
    read_bytes,
    read_json,
    read_table,
    replaced_folder,
    written_whole,
)
from triune.core.yaml_files import read_yaml


def test_pipes_folders_and_absent_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in (("pipe", "is a pipe, but must be"), (".", "is a folder"), ("none", "No such file")):
        with pytest.raises(UserError, match=sentence):
            open_regular(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe"):
        read_bytes(tmp_path / "link", 10)


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFBLK])
def test_devices_are_refused_by_their_mode(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "zero"
    file.write_bytes(b"x")
    assert kind_of(mode) == "a device" and kind_of(stat.S_IFREG) == ""
    monkeypatch.setattr(Path, "stat", lambda self: types.SimpleNamespace(st_mode=mode))
    with pytest.raises(UserError, match="is a device, but must be a regular file"):
        check_regular(file)
    with pytest.raises(UserError, match="is a device; give the name of a file to write"):
        files.write_atomic(file, b"y")


def test_names_that_are_not_utf8_are_refused_in_words_that_can_be_printed() -> None:
    with pytest.raises(UserError) as error:
        check_regular(os.fsdecode(b"caf\xe9.txt"))
    assert str(error.value) == r"The name of 'caf\xe9.txt' is not UTF-8; rename it."


def test_a_panic_of_rust_is_one_sentence_and_an_interrupt_is_none() -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(UserError, match=r"'x' cannot be read as a tokenizer \(index"), parsing("x", "a tokenizer"):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), parsing("x", "a tokenizer"):
        raise KeyboardInterrupt


def test_a_gzip_bomb_is_not_unpacked_beyond_the_bound(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    with pytest.raises(UserError, match="more than 1,000 bytes"):
        read_bytes(tmp_path / "x.gz", 1000)
    (tmp_path / "y.gz").write_bytes(gzip.compress(b"text")[:-3])
    with pytest.raises(UserError, match="cannot be read as gzip"):
        read_bytes(tmp_path / "y.gz", 1000)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "limit"),
        (rb'{"a": "\ud800"}', "half a surrogate pair"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        (b"{", "line 1, column 2"),
        (b"", "line 1, column 1"),
    ],
)
def test_json_that_no_program_should_meet(content: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_json(content, "row 1")


def test_json_with_a_whole_surrogate_pair_and_a_byte_order_mark_is_read() -> None:
    assert parse_json(rb'{"a": "\ud83d\ude00"}', "row 1") == {"a": "\U0001f600"}
    assert parse_json("\ufeff[1]".encode(), "row 1") == [1]


def test_json_of_a_depth_of_millions_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a":' + b"[" * 10_000_000)
    with pytest.raises(UserError, match="nested too deeply"):
        read_json(tmp_path / "config.json")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("\n".join(" " * n + "a:" for n in range(1000)), "nested too deeply"),
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "nested too deeply, or holds itself"),
        ("model:\n  dim: 1\n  heads: 2\n  dim: 3", r"line 4: 'dim' stands twice"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("a: 2001-99-99", "cannot be read"),
        ("a: \0", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("{a: 1}: 2", "not valid YAML"),
        ("a: !!int x", "cannot be read"),
    ],
)
def test_yaml_that_no_program_should_meet(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_yaml(tmp_path / "x.yaml", "--config x.yaml")


def test_yaml_with_aliases_and_merged_keys_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("base: &b {dim: 8, depth: 2}\nmodel:\n  <<: *b\n  dim: 16\n")
    assert read_yaml(tmp_path / "x.yaml", "x")["model"] == {"dim": 16, "depth": 2}
    (tmp_path / "x.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        read_yaml(tmp_path / "x.yaml", "x")


def _npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_arrays_come_back_under_their_names(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.arange(3), b=np.array(["x"]))
    found = read_arrays(tmp_path / "x.npz")
    assert found["a"].tolist() == [0, 1, 2] and found["b"].tolist() == ["x"]


def test_archives_of_arrays_that_are_none(tmp_path: Path) -> None:
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
    huge = (head % b"9999999999999").ljust(127) + b"\n"
    np.save(tmp_path / "x.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    cases = {
        "empty": b"",
        "text": b"hello",
        "array": (tmp_path / "x.npy").read_bytes(),
        "objects": (tmp_path / "objects.npz").read_bytes(),
        "odd": _npz(tmp_path / "y", a=b"no array").read_bytes(),
        "cut": _npz(tmp_path / "y", a=b"no array").read_bytes()[:-30],
        "claims": _npz(tmp_path / "y", **{"a.npy": huge}).read_bytes(),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}' cannot be read as a NumPy archive"):
            read_arrays(tmp_path / name)


def test_a_bomb_of_arrays_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FREE_BYTES", 1000)
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 20))
    with pytest.raises(UserError, match="unpacks to 8,388,736 bytes, more than 100 times its size"):
        read_arrays(tmp_path / "x.npz")


def test_tables_need_their_columns_and_whole_rows(tmp_path: Path) -> None:
    table = tmp_path / "x.tsv"
    table.write_text("chain\tsplit\na\ttrain\n")
    assert read_table(table, ["chain", "split"]) == [{"chain": "a", "split": "train"}]
    for content, sentence in (
        (b"chain\tsplit\na\n", "line 2, has not as many cells"),
        (b"chain\tsplit\na\tb\tc\n", "line 2, has not as many cells"),
        (b"chain,split\n", "has no column 'chain'"),
        (b"", "has no column 'chain', only none"),
        (b"chain\tsplit\n\xe9\tb\n", "cannot be read as a table"),
        (b"chain\tsplit\n" + b"x" * 200_000 + b"\tb\n", "cannot be read as a table"),
    ):
        table.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            read_table(table, ["chain", "split"])


def test_a_link_to_a_folder_is_kept_and_its_target_replaced(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("old", "nothing yet"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(name)
        with replaced_folder(link) as new:
            (new / "it").write_text("new")
        assert link.is_symlink() and (tmp_path / name / "it").read_text() == "new"


def test_a_file_that_is_not_written_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a" / "b" / "x.json"):
        raise ZeroDivisionError
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "mine" / "x.json"):
        raise ZeroDivisionError
    assert (tmp_path / "mine").is_dir()  # it was there before
    with none_left_empty(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "x").touch()
    assert (tmp_path / "a" / "x").exists() and not (tmp_path / "a" / "b").exists()
