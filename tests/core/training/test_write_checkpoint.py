"""Checkpoints are written where they belong, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from triune.core.training.lightning_fixes import Straight


def test_a_checkpoint_is_written_straight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file lies in the system's folder for temporary files, which may be small."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    content = {"state_dict": {"weight": torch.arange(5.0)}, "step": 3}
    Straight().save_checkpoint(content, tmp_path / "new" / "a.ckpt")
    found = torch.load(tmp_path / "new" / "a.ckpt", weights_only=True)
    assert torch.equal(found["state_dict"]["weight"], torch.arange(5.0)) and found["step"] == 3
    assert (tmp_path / "new" / "a.ckpt").stat().st_mode & 0o044 == 0o044 & ~int_umask()


def test_a_checkpoint_for_a_store_goes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not into a local folder that is called like the store."""
    monkeypatch.chdir(tmp_path)
    Straight().save_checkpoint({"step": 3}, "memory://straight/a.ckpt")
    with fsspec.open("memory://straight/a.ckpt") as file:
        assert torch.load(file, weights_only=True) == {"step": 3}  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def int_umask() -> int:
    known = os.umask(0)
    os.umask(known)
    return known


@pytest.mark.parametrize("most", [0, 3000])
def test_a_full_disk_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """The error names the file, whatever PyTorch makes of it, and no part of it stays in the way."""
    path, opened = tmp_path / "a.ckpt", Path.open
    Straight().save_checkpoint({"weight": torch.ones(3)}, path)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.size = file, 0

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, content: Any) -> int:
            self.size += len(bytes(content))
            if self.size > most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

        def flush(self) -> None:
            self.file.flush()

        def seek(self, *where: int) -> int:
            return self.file.seek(*where)

        def tell(self) -> int:
            return self.file.tell()

    monkeypatch.setattr(Path, "open", lambda self, *words, **named: Full(opened(self, *words, **named)))
    with pytest.raises(OSError, match="No space left on device") as raised:
        Straight().save_checkpoint({"weight": torch.zeros(4000)}, path)
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(path)
    monkeypatch.undo()
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.ones(3))  # what was there before
    assert os.listdir(tmp_path) == ["a.ckpt"]
