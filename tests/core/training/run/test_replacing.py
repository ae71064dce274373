"""Checkpoints that are folders: killed at any moment while one replaces another, good best weights are left."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from triune.core.training.run.checkpoints import _put_back, _replace
from triune.core.training.run.folder import RunFolder


class Killed(BaseException):
    pass


def make(path: Path, content: str, folder: bool) -> Path:
    path.parent.mkdir(exist_ok=True)
    if folder:
        path.mkdir()
        (path / "weights").write_text(content)
    else:
        path.write_text(content)
    return path


def content(path: Path) -> str:
    return (path / "weights" if path.is_dir() else path).read_text()


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch):
    """Lets the process die before its n-th change of the file system."""
    changes = [(Path, "replace", Path.replace), (Path, "unlink", Path.unlink), (shutil, "rmtree", shutil.rmtree)]

    def after(count: int) -> list[str]:
        made: list[str] = []

        def counted(change):
            def wrapped(*args, **named):
                if len(made) == count:
                    raise Killed
                made.append(str(change))
                return change(*args, **named)

            return wrapped

        for place, name, change in changes:
            monkeypatch.setattr(place, name, counted(change))
        return made

    yield after
    monkeypatch.undo()


@pytest.mark.parametrize(("was", "becomes"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("planned", [False, True])
def test_killed_while_best_weights_are_replaced(was: bool, becomes: bool, planned: bool, tmp_path: Path, dying) -> None:
    for moment in range(20):
        run = RunFolder(tmp_path / f"run{moment}")
        run.path.mkdir()
        make(run.best, "old", was)
        part = make(run.best.with_name("best.part.ckpt"), "new", becomes)
        made = dying(moment)
        with contextlib.suppress(Killed):
            _replace(part, run.best, run, planned)
        ended = len(made) < moment
        dying(1000)
        assert content(run.best_there) == ("new" if ended else content(run.best_there))
        assert content(run.best_there) in ("old", "new")
        _put_back(run)
        expected = "old" if planned and was else "new"
        assert content(run.best) == (expected if ended else content(run.best))
        assert content(run.best) in ("old", "new") and not run.aside.exists() and not run.planned.exists()
        if ended:
            assert moment > 2
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize(("was", "becomes"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_last_state_becomes_the_one_before(was: bool, becomes: bool, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    make(run.previous, "oldest", was)
    make(run.last, "old", was)
    _replace(make(run.last.with_name("last.part.ckpt"), "new", becomes), run.last, run)
    assert (content(run.previous), content(run.last)) == ("old", "new")
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt"}
