import errno
import os
import resource

import numpy as np
import pytest
import torch

from guidex.errors import GuidexError
from guidex.files.atomic import atomic_write

MEGABYTE = np.zeros(2**17)


def test_writes_a_new_file_and_replaces_an_old_one(tmp_path):
    path = tmp_path / "a.npz"
    for value in (1, 2):
        atomic_write(path, lambda file, value=value: np.savez(file, value=value))
        with np.load(path) as data:
            assert data["value"] == value
    assert os.listdir(tmp_path) == ["a.npz"]


def test_the_new_file_has_ordinary_permissions_and_maybe_a_long_name(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / ("n" * 255), lambda file: file.write(b"x"))
    assert (tmp_path / ("n" * 255)).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new, but only in p")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota is used up")]
)
def test_a_full_disk_is_told_with_folder_space_and_way_out(tmp_path, monkeypatch, code, words):
    def fsync(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(GuidexError, match=words) as caught:
        atomic_write(path, lambda file: file.write(bytes(3 * 2**20)))
    for words in (f"are free in {tmp_path}", "run resumes"):
        assert words in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.fixture
def small_files_only():
    """The kernel refuses to let any file grow beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write(MEGABYTE.tobytes()),
        # On an ordinary file, NumPy says "16384 requested and 8192 written", without an errno.
        lambda file: np.save(file, MEGABYTE),
        # PyTorch raises a RuntimeError "unexpected pos" instead.
        lambda file: torch.save(torch.from_numpy(MEGABYTE), file),
    ],
)
def test_the_reason_survives_whoever_writes(tmp_path, small_files_only, write):
    with pytest.raises(GuidexError, match="grew beyond the largest file allowed"):
        atomic_write(tmp_path / "a", write)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(GuidexError, match="absent/a: No such file or directory"):
        atomic_write(tmp_path / "absent" / "a", lambda file: file.write(b"x"))
