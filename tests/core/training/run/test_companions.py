"""Processes of one training of which one ends: in threads of this process, and as trainings of two processes."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triune.core.errors import Stopped, UserError
from triune.core.training.run import companions
from triune.core.training.run.companions import Alone, Companions
from triune.core.training.run.places import Place


class Ranks:
    """Companions of several ranks in this process; what would end a process is noted in `left`."""

    def __init__(self, world: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.places = [Place(rank, world, "127.0.0.1", free.getsockname()[1]) for rank in range(world)]
        self.known = [Companions() for _ in range(world)]
        self.left: list[int] = []
        self.all_left = threading.Event()

    def exit(self, code: int) -> None:
        self.left.append(code)
        if len(self.left) == len(self.known) - 1:
            self.all_left.set()

    def meet(self, *ranks: int) -> None:
        failed: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                self.known[rank].meet(self.places[rank])
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        if failed:
            raise failed[0]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Ranks]]:
    made: list[Ranks] = []

    def make(world: int) -> Ranks:
        made.append(Ranks(world))
        monkeypatch.setattr(companions.os, "_exit", made[0].exit)
        monkeypatch.setattr(companions, "GRACE", 0.0)
        return made[0]

    yield make
    for one in made[0].known if made else []:
        one._over.set()
        one.leave(0)


def test_the_others_end_with_the_code_of_one_that_leaves(make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    ranks = make(3)
    ranks.meet(2, 1, 0)
    ranks.known[2].leave(143)
    # Rank 2 does not end with the test, so it may hear that the others went: that is its own, third entry.
    assert ranks.all_left.wait(60)
    for _ in range(600):
        if ranks.left.count(143) == 2:
            break
        time.sleep(0.1)
    assert ranks.left.count(143) == 2
    said = capfd.readouterr().err.strip()
    assert said == (
        "Rank 2 of 0 to 2 ended with exit code 143, so that all end; a run goes on from its last checkpoint with"
        " --resume true."
    )  # once, by the first of those that are left


def test_who_leaves_does_not_notice_itself() -> None:
    """Rank 0 passes on who has left, also to that one, which may not have closed its connection yet."""
    one = Companions()
    one._place = Place(1, 2, "127.0.0.1", 0)
    here, there = socket.socketpair()
    with here, there:
        one._links[0] = here
        for text, missing in ((b"1 143\n", None), (b"0 2\n", (0, 2))):
            there.sendall(text)
            one._hear(here, {}, "")
            assert one._missing == missing


def test_rank_0_that_vanishes_is_noticed(make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    ranks = make(3)
    ranks.meet(0, 1, 2)
    ranks.known[0]._over.set()  # closes its connections without a word, as the system does at the end of a process
    assert ranks.all_left.wait(60) and ranks.left == [1, 1]
    assert "Rank 0 of 0 to 2 is gone without a word" in capfd.readouterr().err


def test_one_that_gives_no_sign_of_life_is_named(
    make: Any, monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(companions, "BEAT", 0.05)
    monkeypatch.setattr(companions, "HUNG", 1.5)
    ranks = make(3)
    ranks.meet(0, 1, 2)
    assert not ranks.all_left.wait(2.5), "those that give signs of life are left alone"
    monkeypatch.setattr(ranks.known[2], "_say_to_all", lambda said: None)
    assert ranks.all_left.wait(60)
    assert "Rank 2 of 0 to 2 is no longer heard (it, its machine or the network hangs)" in capfd.readouterr().err


def test_a_machine_that_does_not_answer_is_noticed() -> None:
    """The system closes a connection over which nothing was answered for `SILENT` seconds."""
    one = Companions()
    one._place = Place(1, 2, "127.0.0.1", 0)

    class Dead:
        def recv(self, count: int) -> bytes:
            raise TimeoutError(errno.ETIMEDOUT, "timed out")

        def close(self) -> None: ...

    one._links[0] = dead = Dead()  # type: ignore[assignment]
    one._hear(dead, {}, "")  # type: ignore[arg-type]
    assert one._missing == (0, None) and "no longer heard" in one.sentence()
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as link:
        companions._watchful(link)
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


def test_ends_that_are_expected_end_nobody(make: Any) -> None:
    ranks = make(2)
    ranks.known[0].expected = lambda: True
    ranks.meet(0, 1)
    ranks.known[1].leave(130)
    assert ranks.known[0].explain(RuntimeError("another one")) is None
    assert ranks.left == []


@pytest.mark.parametrize("first", [0, 1])
def test_one_that_ends_before_the_others_come_tells_them(make: Any, first: int, monkeypatch: Any) -> None:
    ranks = make(2)
    monkeypatch.setattr(companions, "launched", lambda: ranks.places[first])
    leaving = threading.Thread(target=ranks.known[first].leave, args=(2,))
    leaving.start()
    with pytest.raises(Alone, match=f"Rank {first} of 0 to 1 ended with exit code 2") as raised:
        ranks.meet(1 - first)
    assert raised.value.code == 2
    leaving.join(60)
    assert not leaving.is_alive()


def test_a_mistake_of_all_is_said_by_one(make: Any) -> None:
    """By one of those that have met, and each other mistake too."""
    ranks = make(3)
    ranks.meet(0, 1, 2)
    errors = [UserError("the same"), UserError("the same"), UserError("another")]
    leaving = [
        threading.Thread(target=one.__exit__, args=(UserError, error, None))
        for one, error in zip(ranks.known, errors, strict=True)
    ]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join(60)
    assert sorted(error.said for error in errors[:2]) == [False, True] and not errors[2].said


def test_a_closed_door_is_an_end(make: Any, monkeypatch: Any) -> None:
    """Rank 0 has served the store and ended: no error of the network is shown."""
    ranks = make(2)
    waiting = threading.Thread(target=ranks.known[0].meet, args=(ranks.places[0],))
    waiting.start()
    connect = socket.create_connection
    calls: list[int] = []

    def second_fails(address: tuple[str, int], timeout: float = 0) -> socket.socket:
        calls.append(address[1])
        if address[1] != ranks.places[1].port:
            raise ConnectionRefusedError(111, "Connection refused")
        return connect(address, timeout)

    monkeypatch.setattr(companions.socket, "create_connection", second_fails)
    with pytest.raises(Alone, match="Rank 0 of 0 to 1 is gone"):
        ranks.known[1].meet(ranks.places[1])
    monkeypatch.setattr(companions.socket, "create_connection", connect)
    ranks.known[1]._place = None
    ranks.known[1]._missing = None
    ranks.known[1].meet(ranks.places[1])
    waiting.join(60)
    assert not waiting.is_alive() and len(calls) > 1


@pytest.mark.parametrize(("rank", "late"), [(0, "Ranks 1, 2 of 0 to 2"), (1, "Rank 0 of 0 to 2")])
def test_one_that_never_comes_is_named(
    make: Any, rank: int, late: str, monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(companions, "PATIENCE", 0.5)
    monkeypatch.setattr(companions, "SHOWN", 0.1)
    with pytest.raises(Alone, match=f"{late} did not come within"):
        make(3).meet(rank)
    assert f"Waiting for {late[0].lower()}{late[1:]}." in capfd.readouterr().err


def test_a_started_process_that_has_ended_is_named(make: Any) -> None:
    ranks, child = make(2), subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(Alone, match="Rank 1 of 0 to 1 ended with exit code 3"):
        ranks.known[0].meet(ranks.places[0], [child])


def test_an_error_of_a_common_operation_is_explained(make: Any) -> None:
    ranks = make(2)
    ranks.meet(0, 1)
    assert ranks.known[0].explain(ValueError("of something else")) is None
    ranks.known[1].leave(143)
    alone = ranks.known[0].explain(RuntimeError("Connection closed by peer"))
    assert alone is not None and alone.code == 143


@pytest.mark.parametrize(
    ("error", "code"), [(None, 0), (UserError("x"), 2), (Stopped(143), 143), (KeyboardInterrupt(), 130), (OSError(), 1)]
)
def test_the_code_that_is_told(error: BaseException | None, code: int, monkeypatch: Any) -> None:
    told: list[int] = []
    monkeypatch.setattr(Companions, "leave", lambda self, code: told.append(code))
    Companions().__exit__(type(error), error, None)
    assert told == [code]


FIT = [
    "text", "fit", "--data.files", "text.txt", "--data.cache", "cache", "--data.tokenizer", "bytes", "--data.context",
    "16", "--data.batch_size", "4", "--model.transformer.dim", "16", "--model.transformer.depth", "1",
    "--model.transformer.heads", "2", "--trainer.max_steps", "4", "--threads", "1", "--trainer.limit_val_batches", "2",
    "--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.devices", "2", "--trainer.strategy", "ddp",
]  # fmt: skip


@pytest.mark.slow
def test_one_of_the_processes_that_triune_starts_itself(tmp_path: Path) -> None:
    """Rank 1 cannot even begin: rank 0, which has started it, says so and ends with the same code."""
    (tmp_path / "text.txt").write_text("a few words, a few more words\n" * 200)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('LOCAL_RANK') == '1':\n    os._exit(7)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "triune", *FIT, "--run", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 7 and "Rank 1 of 0 to 1 ended with exit code 7" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
