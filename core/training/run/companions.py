"""Several processes of one training notice within seconds that one of them has ended, and end too, in one sentence.

Their common operations would wait: half an hour before the first one, ten minutes on a GPU. So each process holds a
connection to rank 0, which the system closes when the process ends, however it ends; who leaves says with which exit
code. The address of that connection stands in the store through which PyTorch's group of processes is formed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Self

from lightning.pytorch import Trainer
from torch._C._distributed_c10d import PrefixStore, TCPStore

from ...errors import Stopped, UserError
from ..lightning_fixes import at_setup_of_processes
from .places import Place, launched, place_in

PATIENCE = 300.0
"""Seconds to wait for a process of which nothing has been heard, as its machine may be slow to start."""
SHOWN = 20.0
"""Seconds after which that waiting is said."""
GRACE = 5.0
"""Seconds in which a process that knows that another is gone may still end by itself."""
KNOWN_AFTER = 3.0
"""Seconds within which it is known that a process is gone that an operation has failed without."""
FAREWELL = 20.0
"""Seconds for which one that ends before the others have come waits for them, to tell them."""
BEAT = 5.0
"""Seconds between signs of life."""
SILENT = 30.0
"""Seconds for which a machine may leave what was sent to it unanswered."""
HUNG = 180.0
"""Seconds for which a process may give no sign of life; long, as some work of Python lets no thread speak."""
MOST_BYTES = 4096
"""Of one line."""
PARENT = "TRIUNE_FIRST_PROCESS"
"""Environment variable: the number of the process that starts the others, where one of them does."""


class Alone(Stopped):
    """Another process of the training has ended, or never came."""


class Companions:
    """The other processes of a training, as one of them sees them.

    Args:
        expected: whether this process is about to end anyway, so that the exit code of another is no surprise.
    """

    def __init__(self, expected: Callable[[], bool] = lambda: False) -> None:
        self.expected = expected
        self._place: Place | None = None
        self._store: Any = None
        self._children: list[Any] = []
        self._links: dict[int, socket.socket] = {}
        """Connections by rank: of rank 0 to all others, of any other to rank 0."""
        self._ended: set[int] = set()
        self._missing: tuple[int, int | None] | None = None
        """The rank of the first process that is gone, and its exit code; None where it said none."""
        self._silent = False
        """Whether that is known from its silence alone."""
        self._heard: dict[int, float] = {}
        """When each rank was last heard."""
        self._noticed, self._over = threading.Event(), threading.Event()
        self._watcher: threading.Thread | None = None
        self._mistake, self._said = "", False
        """The mistake with which this process ends, and whether another process has said the same."""
        self._bell: socket.socket | None = None
        """Written to where the watcher shall look whether this process is over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError):
            self._mistake = str(error)
        known = error.code if isinstance(error, Stopped) else 130 if isinstance(error, KeyboardInterrupt) else 1
        self.leave(0 if error is None else 2 if isinstance(error, UserError) else known)
        if isinstance(error, UserError):
            error.said = self._said

    def attach(self, trainer: Trainer) -> None:
        """Lets the processes of `trainer` meet before they form their group."""
        if trainer.world_size == 1:
            return
        if launched() is None and "LOCAL_RANK" not in os.environ:
            os.environ[PARENT] = str(os.getpid())
        at_setup_of_processes(trainer, lambda children: self.meet(place_in(trainer), children))

    @property
    def _rank(self) -> int | None:
        return self._place.rank if self._place else None

    # --- meeting -----------------------------------------------------------------------------------------------------

    def meet(self, place: Place, children: list[Any] | None = None) -> None:
        """Connects to the others, and waits until all of them have come. Without effect the second time.

        Args:
            children: the processes of ranks 1 and so on that this one has started (`subprocess.Popen`).

        Raises:
            Alone: one of them has ended, or has not come in time.
        """
        if place.world == 1 or self._place:
            return
        self._place, self._children = place, children or []
        began = time.monotonic()
        if place.rank == 0:
            self._store = _store(place)
            token = secrets.token_hex(8)
            door = socket.create_server(("", 0), backlog=place.world)
            self._store.set("door", f"{door.getsockname()[1]} {token}")
            self._begin_to_watch(door, token)
            self._until(lambda: len(self._links) == place.world - 1, began)
            return
        self._until(lambda: _answers(place), began)
        self._store = _store(place)
        self._until(lambda: self._store.check(["door"]), began)
        port, token = self._store.get("door").decode().split()
        try:
            link = socket.create_connection((place.host, int(port)), timeout=30)
        except OSError:  # rank 0 has closed its door: it ends
            self._note(0, None)
            raise self.alone() from None
        _watchful(link)
        link.sendall(f"{token} {place.rank}\n".encode())
        self._links[0] = link
        self._begin_to_watch()

    def _until(self, done: Callable[[], bool], began: float) -> None:
        """Waits in Python, where signals arrive, until `done()`."""
        place, said = self._place, False
        assert place
        while not done():
            self._look_for_ends()
            if self._missing:
                raise self.alone()
            waited = time.monotonic() - began
            late = self._late()
            if waited > PATIENCE:
                raise Alone(
                    1, f"{late} of 0 to {place.world - 1} did not come within {PATIENCE:.0f} s; start all anew."
                )
            if waited > SHOWN and not said and place.rank <= 1:
                print(
                    f"Waiting for {late[0].lower()}{late[1:]} of 0 to {place.world - 1}.", file=sys.stderr, flush=True
                )
                said = True
            time.sleep(0.1)

    def _late(self) -> str:
        assert self._place
        if self._place.rank:
            return "Rank 0"
        late = [str(rank) for rank in range(1, self._place.world) if rank not in self._links]
        return f"Rank{'s' * (len(late) > 1)} {', '.join(late[:8])}{', …' * (len(late) > 8)}"

    def _look_for_ends(self) -> None:
        """Notes an end that is known in another way than by a connection: of a child or a parent, or in the store."""
        self._look_at_children()
        assert self._place
        if PARENT in os.environ and self._place.rank and os.environ[PARENT] != str(os.getppid()):
            self._note(0, None)
        if self._store is not None and not self._links and self._store.check(["left"]):
            rank, code = self._store.get("left").decode().split()
            self._store.add("seen", 1)
            self._note(int(rank), int(code))

    def _look_at_children(self) -> None:
        for rank, child in enumerate(self._children, 1):
            if child.poll() not in (None, 0) and rank not in self._ended:
                self._note(rank, child.returncode if child.returncode > 0 else None)

    # --- watching ----------------------------------------------------------------------------------------------------

    def _begin_to_watch(self, door: socket.socket | None = None, token: str = "") -> None:
        self._bell, heard = socket.socketpair()
        self._watcher = threading.Thread(target=self._watch, args=(heard, door, token), daemon=True, name="companions")
        self._watcher.start()

    def _watch(self, bell: socket.socket, door: socket.socket | None, token: str) -> None:
        """Reads what the others say, until this process ends; ends it when one of them is gone."""
        texts: dict[socket.socket, bytes] = {}
        beaten = time.monotonic()
        while not self._over.is_set() and not self._missing:
            known = [*self._links.values(), *texts, bell, *([door] if door else [])]
            for ready in select.select(list(dict.fromkeys(known)), [], [], 0.5)[0]:
                if ready is door:
                    link = ready.accept()[0]
                    _watchful(link)
                    texts[link] = b""
                elif ready is not bell:
                    self._hear(ready, texts, token)
            self._look_at_children()
            if time.monotonic() - beaten > BEAT:
                beaten = time.monotonic()
                self._say_to_all(b".\n")
                self._look_for_silence(beaten)
        if self._missing and not self._over.wait(GRACE):
            if self.speaks:
                print(f"\n{self.sentence()}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(self.code)
        for link in {*self._links.values(), *texts, bell, *([door] if door else [])}:
            link.close()

    def _look_for_silence(self, now: float) -> None:
        """Notes the first process that has given no sign of life for long. This one may have slept as long itself."""
        for rank in list(self._links):
            if now - self._heard.setdefault(rank, now) > HUNG and rank not in self._ended:
                self._note(rank, None, silent=True)

    def _hear(self, link: socket.socket, texts: dict[socket.socket, bytes], token: str) -> None:
        rank, silent = next((rank for rank, other in self._links.items() if other is link), None), False
        with suppress(OSError):
            try:
                said = link.recv(MOST_BYTES)
            except OSError as error:
                silent = error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
                raise
            if rank is not None:
                self._heard[rank] = time.monotonic()
            text = texts.get(link, b"") + said
            *lines, texts[link] = text.split(b"\n")
            for line in lines:
                words = line.decode(errors="replace").split()
                if rank is None:  # the first line of a process that comes
                    if len(words) != 2 or words[0] != token:
                        said = b""  # a stranger
                        break
                    rank = int(words[1])
                    self._links[rank] = link
                elif len(words) == 2 and int(words[0]) != self._rank:  # who, and its exit code
                    self._ended.add(int(words[0]))
                    if int(words[1]) and not self.expected():
                        self._note(int(words[0]), int(words[1]) if int(words[1]) > 0 else None)
            if said and len(texts[link]) <= MOST_BYTES:
                return
        texts.pop(link, None)
        link.close()
        if rank is not None:
            del self._links[rank]
            if rank not in self._ended:
                self._note(rank, None, silent)

    def _note(self, rank: int, code: int | None, silent: bool = False) -> None:
        """Notes the first process that is gone, and tells the others."""
        if self._missing is None and not self._over.is_set():
            self._missing, self._silent = (rank, code), silent
            self._tell(rank, -1 if code is None else code)
            self._noticed.set()

    def _tell(self, rank: int, code: int) -> None:
        self._say_to_all(f"{rank} {code}\n".encode())

    def _say_to_all(self, said: bytes) -> None:
        for link in list(self._links.values()):
            with suppress(OSError):
                link.sendall(said)

    # --- ending ------------------------------------------------------------------------------------------------------

    @property
    def code(self) -> int:
        """The exit code of this process when another one is gone: the same, 1 where that one was killed or crashed."""
        return (self._missing[1] if self._missing else None) or 1

    @property
    def speaks(self) -> bool:
        """Whether it is this of the processes left that says so."""
        if self._place is None or self._missing is None:
            return False
        return self._place.rank == (0 if self._missing[0] else 1)

    def sentence(self) -> str:
        """What happened to the process that is gone."""
        assert self._place and self._missing
        rank, code = self._missing
        how = f"ended with exit code {code}" if code else "is gone without a word (killed, out of memory, or crashed)"
        how = "is no longer heard (it, its machine or the network hangs)" if self._silent else how
        return (
            f"Rank {rank} of 0 to {self._place.world - 1} {how}, so that all end; a run goes on from its last"
            " checkpoint with --resume true."
        )

    def alone(self) -> Alone:
        """The exception that ends this process because another one is gone."""
        return Alone(self.code, self.sentence() if self.speaks else "")

    def explain(self, error: BaseException) -> Alone | None:
        """What to raise in the place of an error of a common operation that another process left; None for any other.

        The operation fails at once; that the other is gone is known a moment later.
        """
        if self._place is None or not isinstance(error, RuntimeError):
            return None
        return self.alone() if self._noticed.wait(KNOWN_AFTER) else None

    def leave(self, code: int) -> None:
        """Tells the others that this process ends, and with which exit code, also where they have not met yet."""
        if self._place and self._links:
            self._look_who_speaks(self._store)
            if not self._missing:
                self._tell(self._place.rank, code)
        elif code and not self._missing:
            with suppress(Exception):  # nobody to tell
                self._say_farewell(code)
        self._over.set()
        if self._watcher and self._bell:
            self._bell.close()  # wakes the watcher
            self._watcher.join(5)

    def _look_who_speaks(self, store: Any) -> None:
        """Notes whether another process has met the same mistake before; then it says it."""
        if self._mistake:
            try:
                self._said = store.add(f"said/{hashlib.sha256(self._mistake.encode()).hexdigest()}", 1) > 1
            except Exception:  # rank 0, which serves the store, has ended with a mistake
                self._said = self._missing is not None and self._missing[1] == 2

    def _say_farewell(self, code: int) -> None:
        place = self._place or launched()
        if place is None or place.world == 1:
            return
        end = time.monotonic() + FAREWELL
        while place.rank and not _answers(place) and time.monotonic() < end:
            time.sleep(0.1)
        store = self._store or _store(place)
        self._look_who_speaks(store)
        if not store.check(["left"]):
            store.set("left", f"{place.rank} {code}")
        store.add("seen", 1)
        while place.rank == 0 and _hosts(place) and store.add("seen", 0) < place.world and time.monotonic() < end:
            time.sleep(0.1)


def _watchful(link: socket.socket) -> None:
    """Lets the system close a connection whose other end has not answered for `SILENT` seconds."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_USER_TIMEOUT": 1000 * SILENT, "TCP_KEEPIDLE": SILENT / 3, "TCP_KEEPINTVL": SILENT / 6}
    for name, value in (options | {"TCP_KEEPCNT": 4}).items():
        with suppress(OSError, AttributeError):  # systems have some of them
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), int(value))


def _hosts(place: Place) -> bool:
    """Whether this process serves the store; under torchrun its agent does."""
    return place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _answers(place: Place) -> bool:
    """Whether the store is served yet; PyTorch's own attempt would print a warning for each that fails."""
    try:
        socket.create_connection((place.host, place.port), timeout=1).close()
    except OSError:
        return False
    return True


def _store(place: Place) -> Any:
    """The store where the processes meet: the one that their group is formed in, which one process may open twice."""
    shared = TCPStore(
        place.host, place.port, place.world, _hosts(place), timedelta(seconds=30), wait_for_workers=False,
        multi_tenant=True,
    )  # fmt: skip
    return PrefixStore(f"triune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
