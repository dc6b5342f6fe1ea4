"""The cache folder holds whole things or nothing, under names that differ where the content may."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import properties

from quantlab.storage.files import cache_dir, code_digest, digest, file_digest, whole_folder, write_whole

parts = st.lists(st.text(max_size=4) | st.binary(max_size=4), max_size=4)


def as_bytes(values: list[str | bytes]) -> list[bytes]:
    return [value.encode() if isinstance(value, str) else value for value in values]


def test_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUANTLAB_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("QUANTLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "quantlab"


@pytest.mark.parametrize("own", ["", None])
@pytest.mark.parametrize("users", ["", None, "cache", "."])
def test_empty_variables_count_as_not_set(
    own: str | None, users: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the cache would lie in the working folder, or among the package's sources."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("QUANTLAB_CACHE", own), ("XDG_CACHE_HOME", users)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cache_dir() == tmp_path / ".cache" / "quantlab"


@properties
@given(parts, parts)
def test_digests_are_equal_where_the_parts_are(one: list[str | bytes], other: list[str | bytes]) -> None:
    assert (digest(one) == digest(other)) == (as_bytes(one) == as_bytes(other))


def test_parts_do_not_run_together() -> None:
    assert len({digest(["ab", "c"]), digest(["a", "bc"]), digest(["abc"]), digest(["abc", ""])}) == 4


def test_file_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert (
        file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_code_is_part_of_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("quantlab.storage.files.CODE", tmp_path)
    digest_now = code_digest.__wrapped__
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "grid.py").write_text("bits = 8")
    before = digest_now()
    (tmp_path / "notes.txt").write_text("not code")
    (tmp_path / "run.py").write_text("starts trials, and decides none of their numbers")
    assert digest_now() == before
    (tmp_path / "quant" / "grid.py").write_text("bits = 4")
    assert digest_now() != before


def test_code_that_is_edited_while_a_process_runs_does_not_rename_its_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = code_digest()
    monkeypatch.setattr("quantlab.storage.files.CODE", tmp_path)
    assert code_digest() == before


def test_published_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "key"
    with whole_folder(target) as scratch:
        (scratch / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_published_by_a_block_that_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_folder(tmp_path / "key") as scratch:
        (scratch / "half").write_text("written")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_wins(tmp_path: Path) -> None:
    target = tmp_path / "key"
    with whole_folder(target) as slower:
        (slower / "file").write_text("slower")
        with whole_folder(target) as quicker:
            (quicker / "file").write_text("quicker")
    assert (target / "file").read_text() == "quicker"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_target_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("a file in the way")
    with pytest.raises(OSError, match="key"), whole_folder(tmp_path / "key") as scratch:
        (scratch / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_files_are_written_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_whole(path, "old")
    write_whole(path, "né")
    assert path.read_bytes() == "né".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_what_is_written_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and contents, in the order in which a power failure may come between."""
    events: list[str] = []

    def fsync(handle: int) -> None:
        events.append(f"synced {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")

    def renamed(kind: str) -> Callable[[Path, Path], Path]:
        own = getattr(Path, kind)

        def rename(path: Path, target: Path) -> Path:
            events.append(f"{path.name} becomes {target.name}")
            return Path(own(path, target))

        return rename

    monkeypatch.setattr("os.fsync", fsync)
    for kind in ("rename", "replace"):
        monkeypatch.setattr(Path, kind, renamed(kind))
    write_whole(tmp_path / "result.json", "{}")
    scratch = events[1].split()[0]
    assert events == [f"synced {scratch}", f"{scratch} becomes result.json", f"synced {tmp_path.name}"]
    events.clear()
    with whole_folder(tmp_path / "key") as folder:
        (folder / "file").touch()
    assert events == [
        "synced file",
        f"synced {folder.name}",
        f"{folder.name} becomes key",
        f"synced {tmp_path.name}",
    ]
