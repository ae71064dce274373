"""One process at a time in a folder, of every command that writes one piece by piece."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triune.core import shards
from triune.core.embeddings.writer import Writer
from triune.core.errors import UserError
from triune.core.files import check_new
from triune.core.lock import NAME, Lock, claim, claimed, give_back


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


@pytest.fixture
def free() -> Iterator[None]:
    yield
    give_back()


def test_an_output_is_written_by_one_process(tmp_path: Path, free: None) -> None:
    target = tmp_path / "new" / "x.csv"
    check_new([target, tmp_path / "y.png"], overwrite=False)
    check_new([target], overwrite=False)  # this process has it already
    (tmp_path / "link").symlink_to(tmp_path)
    for name in (target, tmp_path / "link" / "new" / "x.csv", tmp_path / "y.png"):
        said = in_another_process(lambda name=name: check_new([name], overwrite=True))
        assert said == (
            f"'{name}' is being written by another process ({os.getpid()}); wait until it has ended, stop it, or give"
            " another name."
        )
    assert in_another_process(lambda: check_new([tmp_path / "z.csv"], overwrite=False)) == ""
    give_back()
    (tmp_path / ".z.csv.lock").unlink()  # of a process that ended without a word
    assert in_another_process(lambda: check_new([target], overwrite=False)) == ""
    claim([target])  # what a killed process left is no claim
    give_back()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link"]


def test_a_claim_for_a_while(tmp_path: Path) -> None:
    with claimed(tmp_path / ("x" * 250)):
        assert "is being written" in in_another_process(lambda: claim([tmp_path / ("x" * 250)]))
    assert in_another_process(lambda: claim([tmp_path / ("x" * 250)])) == ""


def test_a_folder_that_cannot_be_written_is_said_by_the_name_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".x.csv.lock"))

    monkeypatch.setattr("triune.core.lock.os.open", refuse)
    with pytest.raises(OSError, match=re.escape(f"'{tmp_path / 'x.csv'}'")):
        claim([tmp_path / "x.csv"])


def test_a_file_system_without_locks_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: None) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("triune.core.lock.fcntl.lockf", refuse)
    claim([tmp_path / "x.csv"])
