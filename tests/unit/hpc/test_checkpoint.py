"""Checkpoints of one rank: written whole or not at all, and never lost by accident."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc import checkpoint, tensorfile
from hpc.alone import Alone
from hpc.checkpoint import Checkpoints
from hpc.config.folder import MANIFEST
from hpc.errors import RunError

ROOT = Path(checkpoint.__file__).parent.parent


def at(folder: Path, *, run_id: str = "abc", keep: int = 2, tell: Callable[[str], None] = print) -> Checkpoints:
    return Checkpoints(folder, Alone(), run_id, keep, tell)


def shared(step: int) -> dict[str, Any]:
    return {"step": step, "weight": torch.full((40,), float(step))}


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, step // 10, shared(step), {"own": step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def name(step: int) -> str:
    return f"step-{step:09d}-epoch-{step // 10:05d}"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


# --- saving ------------------------------------------------------------------------------------------------


def test_what_was_saved_comes_back(folder):
    state = {"weight": torch.randn(3, 4), "optimizer": {0: {"step": torch.tensor(2.0)}}}
    at(folder).save(120, 4, state, {"random": torch.get_rng_state()})
    loaded = at(folder).load()
    assert loaded.step == 120
    assert torch.equal(loaded.shared["weight"], state["weight"])
    assert torch.equal(loaded.own["random"], torch.get_rng_state())
    assert loaded.passed_over == ()


def test_a_checkpoint_is_its_files_and_a_manifest_and_nothing_else(folder):
    save(at(folder), 10)
    assert names(folder) == [name(10)]
    assert names(folder / name(10)) == [MANIFEST, "rank-0000.h5", "shared.h5"]


def test_the_manifest_says_whose_it_is(folder):
    save(at(folder), 10)
    manifest = json.loads((folder / name(10) / MANIFEST).read_text())["manifest"]
    assert {key: manifest[key] for key in ("run_id", "world_size", "step", "version")} == {
        "run_id": "abc", "world_size": 1, "step": 10, "version": 1,
    }  # fmt: skip


def test_the_newest_is_loaded(folder):
    save(at(folder, keep=5), 10, 20, 100, 90)
    assert at(folder).load().step == 100


@pytest.mark.parametrize("keep", [2, 3])
def test_as_many_as_asked_for_stay_the_newest_ones(folder, keep):
    save(at(folder, keep=keep), 10, 20, 30, 40)
    assert names(folder) == [name(step) for step in (10, 20, 30, 40)[-keep:]]


def test_older_ones_go_only_after_the_new_one_is_complete(folder, monkeypatch):
    """At every moment of saving there are two complete checkpoints."""
    checkpoints = at(folder, keep=2)
    save(checkpoints, 10, 20)
    complete: list[int] = []

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **keys: Any) -> Any:
            complete.append(len(list(folder.glob(f"*/{MANIFEST}"))))
            return function(*arguments, **keys)

        return counted

    monkeypatch.setattr(tensorfile, "write", count(tensorfile.write))
    monkeypatch.setattr(checkpoint, "write_atomically", count(checkpoint.write_atomically))
    monkeypatch.setattr(checkpoint.shutil, "rmtree", count(checkpoint.shutil.rmtree))
    save(checkpoints, 30)
    assert len(complete) == 4  # two files, the manifest, the removal
    assert min(complete) == 2
    assert names(folder) == [name(20), name(30)]


def test_what_is_removed_loses_its_manifest_first(folder, monkeypatch):
    """A run killed while it removes leaves nothing that looks complete."""
    checkpoints = at(folder, keep=2)
    save(checkpoints, 10, 20)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
    save(checkpoints, 30)
    assert not (folder / name(10) / MANIFEST).exists()
    assert at(folder).load().step == 30


def test_the_files_are_on_the_disk_before_the_manifest_is(folder, monkeypatch):
    """What is renamed into place has been waited for, and the manifest is last."""
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        events.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append("rename " + Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    save(at(folder), 10)
    for file in ("rank-0000.h5", "shared.h5", MANIFEST):
        renamed = events.index(f"rename {file}")
        assert events[renamed - 1].startswith(f"fsync .{file}")
        assert events[renamed + 1] == f"fsync {name(10)}"
    assert [event for event in events if "rename" in event][-1] == f"rename {MANIFEST}"
    assert events[-1] == "fsync checkpoints"


# --- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["shared.h5", "rank-0000.h5"])
@pytest.mark.parametrize("place", [0, 700, -1])
def test_a_damaged_newest_one_falls_back_to_the_older_one(folder, file, place):
    save(at(folder), 10, 20)
    flip(folder / name(20) / file, place)
    loaded = at(folder).load()
    assert loaded.step == 10
    assert loaded.shared["weight"].tolist() == [10.0] * 40
    (text,) = loaded.passed_over
    assert name(20) in text
    assert file in text


def test_a_damaged_one_is_set_aside_not_deleted(folder):
    save(at(folder), 10, 20)
    damaged = folder / name(20) / "shared.h5"
    flip(damaged, -1)
    content = damaged.read_bytes()
    at(folder).load()
    assert names(folder) == [f"damaged-{name(20)}", name(10)]
    assert (folder / f"damaged-{name(20)}" / "shared.h5").read_bytes() == content


def test_a_run_goes_on_from_the_older_one_and_may_damage_again(folder):
    for _ in range(3):
        save(at(folder), 10, 20)
        (folder / name(20) / "rank-0000.h5").unlink()
        assert at(folder).load().step == 10
    assert names(folder) == [f"damaged-{name(20)}{more}" for more in ("", ".1", ".2")] + [name(10)]


def test_several_damaged_ones_are_all_passed_over(folder):
    save(at(folder, keep=4), 10, 20, 30, 40)
    for step in (20, 30, 40):
        (folder / name(step) / "shared.h5").write_bytes(b"short")
    loaded = at(folder).load()
    assert loaded.step == 10
    assert [name(step) in text for step, text in zip((40, 30, 20), loaded.passed_over, strict=True)] == [True] * 3


def test_an_older_damaged_one_does_not_disturb(folder):
    save(at(folder), 10, 20)
    flip(folder / name(10) / "shared.h5", 0)
    loaded = at(folder).load()
    assert (loaded.step, loaded.passed_over) == (20, ())
    assert names(folder) == [name(10), name(20)]


def test_a_missing_file_is_damage(folder):
    save(at(folder), 10, 20)
    (folder / name(20) / "shared.h5").unlink()
    loaded = at(folder).load()
    assert loaded.step == 10
    assert "shared.h5: missing" in loaded.passed_over[0]


def test_files_of_another_checkpoint_are_damage(folder):
    save(at(folder), 10, 20)
    for file in ("shared.h5", "rank-0000.h5"):
        (folder / name(20) / file).write_bytes((folder / name(10) / file).read_bytes())
    assert at(folder).load().step == 10


def test_every_altered_byte_of_the_manifest_is_noticed(folder):
    save(at(folder), 10)
    path = folder / name(10) / MANIFEST
    content = path.read_bytes()
    for place in range(len(content) - 1):  # the last is a line break: nothing hangs on it
        flip(path, place)
        with pytest.raises(RunError, match="none of 1 checkpoint"):
            at(folder).load()
        path.write_bytes(content)
    assert at(folder).load().step == 10


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"crc32": 0, "manifest": []}'])
def test_what_is_no_manifest_is_passed_over(folder, content):
    save(at(folder), 10, 20)
    (folder / name(20) / MANIFEST).write_bytes(content)
    loaded = at(folder).load()
    assert loaded.step == 10
    assert MANIFEST in loaded.passed_over[0]


def test_a_truncated_manifest_is_passed_over(folder):
    save(at(folder), 10, 20)
    path = folder / name(20) / MANIFEST
    path.write_bytes(path.read_bytes()[:-20])
    assert at(folder).load().step == 10


def rewrite(folder: Path, **changes: Any) -> None:
    """Change a manifest, and its checksum with it."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())["manifest"] | changes
    text = json.dumps(manifest, sort_keys=True)
    path.write_text(json.dumps({"crc32": zlib.crc32(text.encode()), "manifest": manifest}))


@pytest.mark.parametrize("change", [{"version": 99}, {"format": "another program"}])
def test_another_version_is_passed_over_and_named(folder, change):
    save(at(folder), 10, 20)
    rewrite(folder / name(20), **change)
    loaded = at(folder).load()
    assert loaded.step == 10
    assert str(*change.values()) in loaded.passed_over[0]


# --- what must end the run ---------------------------------------------------------------------------------


def test_none_whole_is_an_error_that_names_each_and_deletes_nothing(folder):
    save(at(folder), 10, 20)
    for step in (10, 20):
        flip(folder / name(step) / "shared.h5", -1)
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    with pytest.raises(RunError, match="none of 2 checkpoint") as caught:
        at(folder).load()
    assert name(10) in str(caught.value)
    assert name(20) in str(caught.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def test_another_run_is_refused_not_passed_over(folder):
    save(at(folder, run_id="abc"), 10, 20)
    rewrite(folder / name(20), run_id="xyz")
    with pytest.raises(RunError, match="belongs to run xyz, but this is run abc"):
        at(folder, run_id="abc").load()
    assert names(folder) == [name(10), name(20)]


def test_what_another_number_of_ranks_wrote_is_read_rank_by_rank(folder):
    save(at(folder), 10)
    first = folder / name(10) / "rank-0000.h5"
    second = first.with_name("rank-0001.h5")
    entry = tensorfile.write(second, {"own": 7})
    files = json.loads((folder / name(10) / MANIFEST).read_text())["manifest"]["files"]
    rewrite(folder / name(10), world_size=2, files={**files, second.name: entry})
    loaded = at(folder).load()
    assert (loaded.own, loaded.world_size) == (None, 2)
    assert [loaded.read(rank)["own"] for rank in range(2)] == [10, 7]
    flip(second, -1)  # every rank looks at all of them
    with pytest.raises(RunError, match=r"rank-0001\.h5"):
        at(folder).load()


def test_those_of_another_number_of_ranks_are_newer_though_their_steps_are_fewer(folder):
    checkpoints = at(folder)
    save(checkpoints, 30, 40)
    checkpoints.save(25, 5, shared(25), {"own": 25}, resized=1)
    assert names(folder) == [name(40), "step-r00001-000000025-epoch-00005"]
    assert at(folder).load().step == 25
    checkpoints.save(9, 6, shared(9), {"own": 9}, resized=2)
    assert at(folder).load().step == 9


# --- interruption ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_or_missing_folder_holds_nothing(folder, exists):
    if exists:
        folder.mkdir()
    assert at(folder).load() is None


def interrupted(folder: Path, step: int) -> None:
    """What a run leaves that was killed while it wrote."""
    (folder / name(step)).mkdir(parents=True)
    tensorfile.write(folder / name(step) / "rank-0000.h5", {"own": step})
    (folder / name(step) / ".shared.h5.tmp").write_bytes(b"half")


def test_one_interrupted_before_its_manifest_is_ignored_and_cleaned(folder):
    save(at(folder), 10)
    interrupted(folder, 20)
    loaded = at(folder).load()
    assert (loaded.step, loaded.passed_over) == (10, ())
    assert names(folder) == [name(10)]


def test_the_first_one_interrupted_is_cleaned_too(folder):
    interrupted(folder, 10)
    assert at(folder).load() is None
    assert names(folder) == []


def test_saving_where_one_was_interrupted_works(folder):
    interrupted(folder, 10)
    save(at(folder), 10)
    assert names(folder / name(10)) == [MANIFEST, "rank-0000.h5", "shared.h5"]
    assert at(folder).load().step == 10


def test_what_cannot_be_held_is_named_and_leaves_nothing_that_looks_complete(folder):
    with pytest.raises(TypeError, match="state weird"):
        at(folder).save(10, 1, {}, {"weird": object()})
    assert at(folder).load() is None


def test_an_interruption_leaves_no_temporary_file(folder, monkeypatch):
    def interrupt(path: Path, _: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorfile, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(at(folder), 10)
    assert names(folder / name(10)) == []


# --- a disk that is full -----------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["shared.h5", "rank-0000.h5", MANIFEST, name(20)])
@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "no space left on the disk"), (errno.EDQUOT, "quota exceeded"), (errno.EIO, "Input/output error")],
)
def test_whatever_cannot_be_written_is_one_clear_error(folder, monkeypatch, part, number, said):
    checkpoints = at(folder)
    save(checkpoints, 10)
    failure = OSError(number, os.strerror(number))

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def maybe(path: Path, *arguments: Any, **keys: Any) -> Any:
            if part in path.name:
                raise failure
            return function(path, *arguments, **keys)

        return maybe

    monkeypatch.setattr(tensorfile, "write", failing(tensorfile.write))
    monkeypatch.setattr(checkpoint, "write_atomically", failing(checkpoint.write_atomically))
    monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir))
    with pytest.raises(RunError) as caught:
        save(checkpoints, 20)
    message = str(caught.value)
    assert "the checkpoint of step 20 could not be written (rank 0: " in message
    assert said in message
    assert f"the last good one is {name(10)}" in message
    assert names(folder) == [name(10)]
    monkeypatch.undo()
    assert at(folder).load().step == 10


def test_without_an_earlier_one_the_error_says_so(folder, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "write", full)
    with pytest.raises(RunError, match="none was written before"):
        save(at(folder), 10)


FILL = """
import sys
from pathlib import Path
import torch
from hpc.checkpoint import Checkpoints
from hpc.alone import Alone
from hpc.errors import RunError

folder, numbers = Path(sys.argv[1]), int(sys.argv[2])
checkpoints = Checkpoints(folder, Alone(), "abc", 2, print)
checkpoints.save(1, 0, {"step": 1}, {})
LIMIT
many = {f"k{place}": torch.zeros(3) for place in range(50)}
for attempt in range(3):
    try:
        checkpoints.save(2, 0, {"big": torch.ones(numbers), **many}, many)
    except RunError as error:
        print("refused:", error)
    else:
        print("written")
print("step", checkpoints.load().step)
print("left", sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
"""


def fill(folder: Path, numbers: int, limit: str = "") -> str:
    """Save to a disk that is full, in a process of its own: HDF5 may crash its process as it ends."""
    code = textwrap.dedent(FILL).replace("LIMIT", limit)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(numbers)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def assert_refused_and_unharmed(said: str, reason: str) -> None:
    assert said.count("refused:") == 3
    assert said.count(reason) == 3
    assert "written" not in said.replace("could not be written", "")
    assert "the last good one is step-000000001-epoch-00000" in said
    assert "step 1\n" in said
    left = ["", f"/{MANIFEST}", "/rank-0000.h5", "/shared.h5"]
    assert f"left {[f'step-000000001-epoch-00000{file}' for file in left]}\n" in said


@pytest.mark.parametrize(("limit", "numbers"), [(20_000, 10), (200_000, 50_000)])
def test_a_file_that_may_not_grow_is_refused_and_the_older_one_stays(folder, limit, numbers):
    """The limit falls on HDF5's own structures (few numbers) or on a tensor (many)."""
    said = fill(
        folder,
        numbers,
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))",
    )
    assert_refused_and_unharmed(said, "File too large")


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of 96 KiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small file system")
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("numbers", [10, 100_000])
def test_a_full_disk_is_refused_and_the_older_one_stays(tiny_disk, numbers):
    if numbers == 10:
        (tiny_disk / "others").write_bytes(bytes(50_000))
    said = fill(tiny_disk / "checkpoints", numbers)
    assert_refused_and_unharmed(said, "no space left on the disk")
