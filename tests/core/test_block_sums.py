"""Runs of bytes that are compared with the checksums of their blocks."""

from __future__ import annotations

import itertools
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.core import block_sums
from triune.core.block_sums import BLOCK, Content, Verified, span
from triune.core.errors import UserError
from triune.core.shards import Folder

WHOLE = np.random.default_rng(0).integers(256, size=2 * BLOCK + 100, dtype=np.uint8).tobytes()


def content_in(folder: Path, whole: bytes = WHOLE) -> Content:
    (folder / "a.data").write_bytes(b"head" + whole)
    sums = block_sums.block_sums([whole])
    (folder / "a.sums").write_bytes(sums.tobytes())
    return Content("a.data", 4, len(whole), "a.sums", zlib.crc32(sums.tobytes()))


def read(folder: Path, content: Content, first: int, size: int) -> bytes:
    file = (folder / "a.data").read_bytes()
    return Verified().read(Folder(folder), content, first, size, lambda at, count: file[at : at + count])


@given(st.lists(st.integers(0, BLOCK * 2), max_size=6))
def test_sums_do_not_depend_on_the_pieces(cuts: list[int]) -> None:
    ends = sorted({0, len(WHOLE), *cuts})
    pieces = [WHOLE[a:b] for a, b in itertools.pairwise(ends)]
    expected = [zlib.crc32(WHOLE[at : at + BLOCK]) for at in range(0, len(WHOLE), BLOCK)]
    assert block_sums.block_sums(pieces).tolist() == expected


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, len(WHOLE)))
def test_spans_are_whole_blocks(first: int, size: int) -> None:
    size = min(size, len(WHOLE) - first)
    begin, count = span(Content("", 0, len(WHOLE), "", 0), first, size)
    assert begin <= first and begin + count >= first + size and begin % BLOCK == 0
    assert begin + count == len(WHOLE) or count % BLOCK == 0
    assert count < size + 2 * BLOCK


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    content, draw = content_in(tmp_path), random.Random(0)
    for first, size in ((0, len(WHOLE)), (BLOCK - 1, 2), (len(WHOLE) - 1, 1), (5, 9)):
        assert read(tmp_path, content, first, size) == WHOLE[first : first + size]
        altered = bytearray(b"head" + WHOLE)
        altered[4 + first + draw.randrange(size)] ^= 1 << draw.randrange(8)
        (tmp_path / "a.data").write_bytes(altered)
        with pytest.raises(UserError, match=r"a\.data' was altered"):
            read(tmp_path, content, first, size)
        (tmp_path / "a.data").write_bytes(b"head" + WHOLE)


def test_checksums_of_another_shard(tmp_path: Path) -> None:
    content = content_in(tmp_path)
    content_in(tmp_path, WHOLE[::-1])
    with pytest.raises(UserError, match=r"a\.sums' was altered"):
        read(tmp_path, content, 0, 1)


def test_few_tables_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_sums, "KEPT", 2)
    verified, content = Verified(), content_in(tmp_path)
    for name in "bcde":
        (tmp_path / f"{name}.sums").write_bytes((tmp_path / "a.sums").read_bytes())
        one = content._replace(sums=f"{name}.sums")
        verified.read(Folder(tmp_path), one, 0, 3, lambda at, count: WHOLE[:count])
    assert len(verified._tables) == 2


def test_a_file_cut_short_while_it_is_read(tmp_path: Path) -> None:
    content = content_in(tmp_path)
    (tmp_path / "a.data").write_bytes(b"head" + WHOLE[:9])
    with pytest.raises(UserError, match="was cut short while it was read"):
        read(tmp_path, content, 0, 20)
