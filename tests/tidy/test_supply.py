"""Locks, advisories and the list of what is inside: they hold, and each planted fault is found."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from executor import __version__
from executor.sandbox import engine
from supply import __main__ as command
from supply import advisories, installed, lock, sbom
from supply.advisories import Advisory, Review
from supply.installed import Package
from supply.lock import Pin

TODAY: Final = dt.date(2026, 11, 25)
HASH: Final = "ab" * 32


# Locks.


@pytest.mark.parametrize("name", lock.LOCKS)
def test_the_locks_have_all_that_is_asked_for(name: str) -> None:
    """Every requirement, and what it requires in turn, is locked by hash within its range."""
    pins = lock.read(name)
    assert lock.problems(pins, lock.roots(lock.LOCKS[name])) == []
    assert all(pin.hashes for pin in pins.values())


def test_the_locks_agree() -> None:
    """What runs in production is tested in the same versions, from the same files."""
    production, development = (lock.read(name) for name in lock.LOCKS)
    assert {n: p for n, p in development.items() if n in production} == production


def test_the_lock_names_no_source() -> None:
    """A lock says which bytes, never from where."""
    for name in lock.LOCKS:
        text = (lock.FOLDER / name).read_text()
        assert "://" not in text
        assert "--index" not in text


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a==1", "not a version with its hashes"),
        ("a>=1 --hash=sha256:" + HASH, "not a version"),
        ("a==1 --hash=md5:00", "not a version"),
        ("a==1 --hash=sha256:00", "not a version"),
        ("-r other.txt", "not a version"),
        ("a @ file:///a.whl", "not a version"),
        (f"a==1 --hash=sha256:{HASH}\nA==2 --hash=sha256:{HASH}", "twice"),
    ],
)
def test_a_line_of_another_form_is_refused(text: str, word: str) -> None:
    """What is not pinned by hash does not stand in a lock."""
    with pytest.raises(ValueError, match=word):
        lock.parse(text)


def test_a_pin_is_read() -> None:
    """Names are compared as installers do; comments and continued lines are read."""
    pins = lock.parse(f"# x\nA_b.C==1.0 \\\n    --hash=sha256:{HASH}\n    # via y\n")
    assert pins == {"a-b-c": Pin("a-b-c", "1.0", frozenset({HASH}))}


def test_planted_faults_in_a_lock_are_found() -> None:
    """A missing package, one outside its range, and a missing one behind another are named."""
    pins = lock.read("production.lock")
    wanted = lock.roots(())
    old = {**pins, "wasmtime": Pin("wasmtime", "49.0.0", frozenset({HASH}))}
    assert lock.problems(old, wanted) == ["`wasmtime` 49.0.0 is locked, <51,>=50.0.1 is asked for"]
    without = {name: pin for name, pin in pins.items() if name != "click"}
    assert lock.problems(without, wanted) == ["`click` is not locked"]
    assert installed.version("cryptography")
    behind = {**pins, "cryptography": Pin("cryptography", str(installed.version("cryptography")),
                                          frozenset({HASH}))}  # fmt: skip
    del behind["cffi"]
    assert lock.problems(behind, wanted) == ["`cffi` is not locked"]


def wheel(folder: Path) -> tuple[Path, str]:
    """A package of one file, and its digest."""
    path = folder / "planted-1.0-py3-none-any.whl"
    files = {
        "planted.py": b"",
        "planted-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: planted\nVersion: 1.0\n",
        "planted-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
                                       b"Tag: py3-none-any\n",
    }  # fmt: skip
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()},"
        for name, data in files.items()
    ]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("planted-1.0.dist-info/RECORD", "\n".join([*rows, ""]))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def pip(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Ask pip to install by hash what a lock says, from a folder alone."""
    (folder / "planted.lock").write_text(text)
    return subprocess.run(
        [sys.executable, "-I", "-m", "pip", "install", "--isolated", "--no-index", "--quiet",
         "--find-links", str(folder), "--require-hashes", "--no-deps", "--target",
         str(folder / "target"), "-r", str(folder / "planted.lock")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    """The installer takes the file whose hash is locked, and no other, and none without a hash."""
    _, digest = wheel(tmp_path)
    wrong = pip(tmp_path, f"planted==1.0 --hash=sha256:{HASH}\n")
    assert wrong.returncode != 0
    assert "DO NOT MATCH THE HASHES" in wrong.stderr
    without = pip(tmp_path, "planted==1.0\n")
    assert without.returncode != 0
    assert not (tmp_path / "target").exists()
    good = pip(tmp_path, f"planted==1.0 --hash=sha256:{digest}\n")
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "target" / "planted.py").exists()


# Advisories.


def test_no_advisory_is_about_what_is_installed() -> None:
    """What is installed and what is locked is safe by a list that was reviewed not long ago.

    This test fails by itself 35 days after the last review: see advisories.toml.
    """
    assert command.check(dt.datetime.now(tz=dt.UTC).date()) == []


def test_an_accepted_advisory_has_a_reason_and_a_need() -> None:
    """A row that is accepted says why; once what is installed is safe, it has to go."""
    review = advisories.read()
    assert list(advisories.accepted(review, installed.version)) == []
    assert all(not a.accepted or len(a.accepted) > 20 for a in review.advisories)


def test_what_is_asked_for_is_safe() -> None:
    """No range in pyproject.toml begins below what is safe."""
    safe: dict[str, Version] = {}
    for one in advisories.read().advisories:
        if not one.accepted:
            safe[one.package] = max(Version(one.safe), safe.get(one.package, Version("0")))
    for root in lock.roots(lock.LOCKS["development.lock"]):
        name = canonicalize_name(root.name)
        least = [Version(s.version) for s in root.specifier if s.operator in {">=", "=="}]
        assert name not in safe or min(least) >= safe[name], name


def test_the_engines_floor_is_in_the_list() -> None:
    """What refuses to start and what fails the tests is the same version."""
    floor = ".".join(map(str, engine.VERSION_MIN))
    rows = [a for a in advisories.read().advisories if a.package == "wasmtime" and not a.accepted]
    assert max(Version(a.safe) for a in rows) == Version(floor)


def test_a_planted_old_engine_is_found() -> None:
    """An older wasmtime is named with its advisory; the same or a newer one is not."""
    rows = (Advisory("wasmtime", "50.0.1", "GHSA-x"), Advisory("absent", "1", "GHSA-y"))
    review = Review(TODAY, rows)
    for have, found in {
        "50.0.0": ["wasmtime 50.0.0 is below 50.0.1: GHSA-x"], "50.0.1": [], "50.0.2": [],
        "9.0": ["wasmtime 9.0 is below 50.0.1: GHSA-x"],
    }.items():  # fmt: skip
        planted = {"wasmtime": have}
        assert advisories.problems(review, TODAY, planted.get) == found
    old = {"wasmtime": "50.0.0"}
    taken = Review(TODAY, (Advisory("wasmtime", "50.0.1", "GHSA-x", accepted="a reason"),))
    assert advisories.problems(taken, TODAY, old.get) == []
    assert list(advisories.accepted(taken, {"wasmtime": "50.0.1"}.get)) == list(taken.advisories)


@pytest.mark.parametrize(("days", "word"), [(35, ""), (36, "36 days ago"), (-1, "in the future")])
def test_a_stale_review_is_found(days: int, word: str) -> None:
    """A list that nobody looked at for 36 days is a failure, whatever it says."""
    found = advisories.problems(Review(TODAY, ()), TODAY + dt.timedelta(days), lambda _: None)
    assert bool(found) == bool(word)
    assert word in "".join(found)


@pytest.mark.parametrize(
    "text", ["", "reviewed = 2026-11-25", 'reviewed = "today"\nadvisory = []',
             "reviewed = 2026-11-25\n[[advisory]]\npackage = 'a'"],
)  # fmt: skip
def test_a_list_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    """A list that cannot be read does not pass for an empty one."""
    path = tmp_path / "advisories.toml"
    path.write_text(text)
    with pytest.raises((KeyError, TypeError, ValueError)):
        advisories.read(path)


# What is inside.


def test_the_list_of_what_is_inside_is_whole() -> None:
    """It names every package that the executor needs, as CycloneDX does, and is reproducible."""
    text = command.document()
    assert text == command.document()
    document = json.loads(text)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    own = document["metadata"]["component"]
    assert (own["name"], own["version"]) == (installed.PROJECT, __version__)
    assert sbom.versions(text) == {
        name: package.version for name, package in installed.closure(lock.roots(())).items()
    }
    assert all(c["purl"] == f"pkg:pypi/{c['name']}@{c['version']}" for c in document["components"])
    needs = {each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]}
    assert any(ref.startswith("pkg:pypi/cffi@") for ref in needs[
        f"pkg:pypi/cryptography@{installed.version('cryptography')}"])  # fmt: skip


def test_the_list_of_the_last_release_is_what_is_locked() -> None:
    """The committed list has the locked versions, and every direct requirement."""
    versions = sbom.versions((lock.FOLDER / "sbom.json").read_text())
    pins = lock.read("production.lock")
    assert {name: pins[name].version for name in versions} == versions
    assert {canonicalize_name(root.name) for root in lock.roots(())} <= versions.keys()


def test_a_planted_change_is_in_the_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package that came, went or changed is a line, and the command ends with 1."""
    packages = {
        name: Package(name, version, "MIT", ())
        for name, version in {"a": "1", "b": "1", "c": "1"}.items()
    }
    before = sbom.make(packages, ["a"], "1")
    changed = {**packages, "b": Package("b", "2", "", ()), "d": Package("d", "1", "", ())}
    del changed["c"]
    after = sbom.make(changed, ["a"], "1")
    assert sbom.diff(before, after) == ["~ b 1 → 2", "- c 1", "+ d 1"]
    assert sbom.diff(before, before) == []
    old = tmp_path / "old.json"
    old.write_text(command.document().replace(str(installed.version("wasmtime")), "49.0.0"))
    assert command.main(["sbom", "--diff", str(old)]) == 1
    assert "~ wasmtime 49.0.0 → " in capsys.readouterr().out


def test_only_what_is_needed_here_counts() -> None:
    """Requirements of other hosts and of extras that nobody asked for are no part of it."""
    texts = ["a", "b; sys_platform == 'win32'", "c; extra == 'x'"]
    assert [one.name for one in installed.applying(texts)] == ["a"]
    assert [one.name for one in installed.applying(texts, ["x"])] == ["a", "c"]
    found = installed.closure([Requirement("nats-py"), Requirement("no-such-package")])
    assert "nkeys" not in found
    assert "nkeys" in installed.closure([Requirement("nats-py[nkeys]")])


def test_the_project_has_no_other_list_of_dependencies() -> None:
    """The locks are about all extras that pyproject.toml knows."""
    project = tomllib.loads(lock.PYPROJECT.read_text())["project"]
    known = {extra for extras in lock.LOCKS.values() for extra in extras}
    assert set(project["optional-dependencies"]) == known
