"""One process at a time in a folder, of every command that writes one piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from triune.core import shards
from triune.core.embeddings.writer import Writer
from triune.core.errors import UserError
from triune.core.lock import NAME, Lock


def in_another_process(call: Callable[[], object]) -> str:
    """The sentence of the `UserError` that a function raises in a fork of this process; empty for none."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            call()
        except UserError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    take = lambda: Lock(tmp_path).take(lambda owner: f"held{owner}")  # noqa: E731
    assert in_another_process(take) == ""  # ended with it
    assert (tmp_path / NAME).is_file()
    lock = Lock(tmp_path)
    lock.take(lambda owner: "never")
    assert in_another_process(take) == f"held ({os.getpid()})"
    lock.release()
    assert not (tmp_path / NAME).exists()
    assert in_another_process(take) == ""


def test_what_is_no_file_is_no_lock(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(UserError, match="pipe"):
        Lock(tmp_path).take(lambda owner: "never")


def test_two_jobs_do_not_write_the_same_shards(tmp_path: Path) -> None:
    folder = tmp_path / "shards"

    def second() -> None:
        with shards.begin(folder, "a", {"n": 0}):
            pass

    with shards.begin(folder, "a", {"n": 0}) as done:
        assert done == {"identity": "a", "n": 0}
        assert in_another_process(second).startswith(
            f"'{folder}' is being written by another process ({os.getpid()}); wait"
        )
    with shards.begin(folder, "a", {"n": 7}) as done:
        assert done == {"identity": "a", "n": 0}  # goes on
    with pytest.raises(UserError, match="other files or settings"), shards.begin(folder, "b", {}):
        pass
    shards.finish(folder, "text", {"identity": "a"})
    with shards.begin(folder, "a", {}) as done:
        assert done is None
    assert not (folder / NAME).exists()


def test_a_folder_with_nothing_but_a_lock_is_free(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("1")
    with shards.begin(tmp_path, "a", {"n": 0}) as done:
        assert done == {"identity": "a", "n": 0}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    with pytest.raises(UserError, match="no folder of shards"), shards.begin(tmp_path / "other", "a", {}):
        pass


def test_two_jobs_do_not_write_the_same_vectors(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    first = Writer.open(path, {"model": "m"})
    second = lambda **more: Writer.open(path, {"model": "m"}, **more)  # noqa: E731
    said = f"'{path}' is being written by another process ({os.getpid()}); "
    assert in_another_process(second).startswith(said)
    assert in_another_process(lambda: second(overwrite=True)).startswith(said)
    first._lock.release()
