"""The artifact cache: compiled once, authenticated on every read, bounded, and never trusted."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from executor.core import frames, signature, wasm
from executor.errors import ExecutorError
from executor.supervisor import artifacts
from executor.supervisor.artifacts import ArtifactCache
from executor.supervisor.compiling import Product
from executor.supervisor.job import Artifact
from executor.supervisor.process import sealed_memfd
from tests.support import guests
from tests.support.rig import TENANT, Rig, make_config

KEY = bytes(range(32))
DIGEST, ENGINE = "sha256:" + "ab" * 32, "an engine"


def make(folder: Path, *, key: bytes = KEY, max_bytes: int = 2**30) -> tuple[
    ArtifactCache, list[str]
]:  # fmt: skip
    """A cache and the names of the files that it reported."""
    forged: list[str] = []
    return ArtifactCache(folder / "cache", key, max_bytes, forged.append), forged


def product(code: bytes = b"native code") -> Product:
    """What a compiler would have made."""
    artifact = Artifact(sealed_memfd("artifact", code), len(code), ENGINE)
    imports = (("executor:task@1", "input_len", "->i32"),)
    return Product(artifact, imports, (("run", "->i32"),), 65_536)


def content(found: Product) -> bytes:
    """The bytes of its artifact."""
    return os.pread(found.artifact.fd, found.artifact.size, 0)


def test_what_was_put_is_got(tmp_path: Path) -> None:
    """Code and description come back, in a memory file that nobody can change."""
    cache, forged = make(tmp_path)
    assert cache.get(DIGEST, ENGINE) is None
    cache.put(DIGEST, ENGINE, product())
    found = cache.get(DIGEST, ENGINE)
    assert found is not None
    assert (content(found), found.imports, found.exports, found.memory_min) == (
        b"native code", product().imports, product().exports, 65_536,
    )  # fmt: skip
    with pytest.raises(PermissionError):
        os.pwrite(found.artifact.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(found.artifact.fd, 1)
    (file,) = (tmp_path / "cache").iterdir()
    assert (file.stat().st_mode & 0o777, forged) == (0o600, [])


def test_another_engine_or_module_is_a_miss(tmp_path: Path) -> None:
    """An artifact belongs to one module and one engine."""
    cache, forged = make(tmp_path)
    cache.put(DIGEST, ENGINE, product())
    assert cache.get(DIGEST, "another engine") is None
    assert cache.get("sha256:" + "cd" * 32, ENGINE) is None
    # A file under another name does not hold there.
    (file,) = (tmp_path / "cache").iterdir()
    file.rename(cache._path(DIGEST, "another engine"))
    assert cache.get(DIGEST, "another engine") is None
    assert len(forged) == 1


def test_a_flipped_byte_is_a_miss(tmp_path: Path) -> None:
    """Each byte of the file in turn: none is loaded, each is removed and reported."""
    cache, forged = make(tmp_path)
    cache.put(DIGEST, ENGINE, product())
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cache.get(DIGEST, ENGINE) is None
        assert not file.exists()
    for cut in (0, 1, 31, 32, 36, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert cache.get(DIGEST, ENGINE) is None
    file.write_bytes(whole + b"x")
    assert cache.get(DIGEST, ENGINE) is None
    assert forged == [file.name] * (len(whole) + 7)
    file.write_bytes(whole)
    assert cache.get(DIGEST, ENGINE) is not None


def test_another_hosts_key_is_a_miss(tmp_path: Path) -> None:
    """What another host compiled, or an attacker with a key of their own, is not loaded."""
    theirs, _ = make(tmp_path, key=bytes(32))
    theirs.put(DIGEST, ENGINE, product())
    ours, forged = make(tmp_path)
    assert ours.get(DIGEST, ENGINE) is None
    assert len(forged) == 1


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    """What was used longest ago goes first."""
    cache, _ = make(tmp_path, max_bytes=3_500)
    for number in range(3):
        cache.put(f"m{number}", ENGINE, product(bytes(900)))
        os.utime(cache._path(f"m{number}", ENGINE), (number, number))
    assert cache.get("m0", ENGINE) is not None  # used now
    cache.put("m3", ENGINE, product(bytes(900)))
    assert [cache.get(f"m{n}", ENGINE) is not None for n in range(4)] == [True, False, True, True]


def test_a_disk_that_refuses_costs_a_compilation(tmp_path: Path) -> None:
    """No error, nothing half-written."""
    (tmp_path / "cache").write_bytes(b"not a folder")
    cache, forged = make(tmp_path)
    cache.put(DIGEST, ENGINE, product())
    assert cache.get(DIGEST, ENGINE) is None
    assert forged == []


@pytest.mark.parametrize("kind", ["pipe", "endless", "large", "folder", "elsewhere"])
def test_what_is_no_file_of_ours_is_a_miss(tmp_path: Path, kind: str) -> None:
    """Nothing is waited for, followed or read without end; all but a folder is replaced."""
    cache, forged = make(tmp_path)
    cache.put(DIGEST, ENGINE, product())
    path = cache._path(DIGEST, ENGINE)
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "endless":
            path.symlink_to("/dev/zero")
        case "large":
            with path.open("wb") as file:
                file.truncate(2**40)
        case "folder":
            path.mkdir()
        case "elsewhere":
            path.symlink_to(tmp_path / "elsewhere")
    assert cache.get(DIGEST, ENGINE) is None
    assert forged == [path.name]
    cache.put(DIGEST, ENGINE, product())
    assert (cache.get(DIGEST, ENGINE) is not None) == (kind != "folder")


def test_a_part_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands where a part is to be written is neither written through nor removed."""
    cache, _ = make(tmp_path)
    monkeypatch.setattr(secrets, "token_hex", lambda count: "0" * 2 * count)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "cache").mkdir(mode=0o700)
    part = cache._path(DIGEST, ENGINE).with_suffix("." + "0" * 16)
    part.symlink_to(victim)
    cache.put(DIGEST, ENGINE, product())
    assert (victim.read_text(), part.is_symlink()) == ("precious", True)
    assert cache.get(DIGEST, ENGINE) is None
    part.unlink()
    cache.put(DIGEST, ENGINE, product())
    assert cache.get(DIGEST, ENGINE) is not None


def test_parts_that_were_left_are_evicted(tmp_path: Path) -> None:
    """Old ones go, young ones count as artifacts do; files of others stay."""
    cache, _ = make(tmp_path, max_bytes=3_500)
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    old, young = folder / f"{0:064}.17", folder / f"{1:064}.a0"
    other = folder / "notes.txt"
    for path in (old, young, other):
        path.write_bytes(bytes(2_000))
    os.utime(old, (1, 1))
    cache.put("m0", ENGINE, product(bytes(900)))
    assert [path.exists() for path in (old, young, other)] == [False, True, True]
    aged = time.time() - 60
    os.utime(young, (aged, aged))
    cache.put("m1", ENGINE, product(bytes(900)))
    assert [path.exists() for path in (young, other)] == [False, True]
    assert [cache.get(f"m{n}", ENGINE) is not None for n in range(2)] == [True, True]


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write(tmp_path: Path, mode: int) -> None:
    """It is refused at the start, and a cache that becomes one later is done without."""
    cache, forged = make(tmp_path)
    folder = tmp_path / "cache"
    artifacts.check_folder(folder)  # it is made when it is needed
    cache.put(DIGEST, ENGINE, product())
    artifacts.check_folder(folder)
    folder.chmod(mode)
    with pytest.raises(ExecutorError) as caught:
        artifacts.check_folder(folder)
    assert (caught.value.code, "chmod 700" in caught.value.hint) == ("config.invalid", True)
    assert cache.get(DIGEST, ENGINE) is None
    cache.put("m0", ENGINE, product())
    assert (len(list(folder.iterdir())), forged) == (1, [])
    folder.chmod(0o750)
    artifacts.check_folder(folder)
    assert cache.get(DIGEST, ENGINE) is not None


async def test_a_start_with_a_folder_that_others_can_write(tmp_path: Path) -> None:
    """The executor does not start on such a cache."""
    key = tmp_path / "cache.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ExecutorError) as caught:
        Rig(host__cache_key_file=str(key), sandbox__cache_folder=str(tmp_path / "cache"))
    assert "others can write" in caught.value.detail


def test_keys(tmp_path: Path) -> None:
    """The key is 64 hex digits in a file that others cannot read."""
    path = tmp_path / "cache.key"
    with pytest.raises(ExecutorError) as caught:
        artifacts.read_key(path)
    assert caught.value.code == "config.missing"
    path.write_text(KEY.hex())
    path.chmod(0o644)
    with pytest.raises(ExecutorError) as caught:
        artifacts.read_key(path)
    assert "others can use" in caught.value.detail
    path.chmod(0o600)
    assert artifacts.read_key(path) == KEY
    for text in ("", "ab", "zz" * 32):
        path.write_text(text)
        with pytest.raises(ExecutorError) as caught:
            artifacts.read_key(path)
        assert caught.value.code == "config.invalid"


async def test_a_module_is_compiled_once_a_host(tmp_path: Path) -> None:
    """A second life of the executor takes the artifact from the disk, and it runs."""
    key = tmp_path / "cache.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    values: dict[str, Any] = {
        "host__cache_key_file": str(key),
        "sandbox__cache_folder": str(tmp_path / "cache"),
    }
    body = guests.ECHO + '(data (i32.const 77) "cached")'
    compiled = []
    for _ in range(2):
        async with Rig(**values) as rig:
            release = rig.publish("cached", body)
            rig.registry._products.pop(release.digest, None)
            request = rig.ask("cached", b"x")
            assert (await rig.record(request)).output == b"x"
            compiled.append(rig.registry.compiler.started)
            rig.registry._products.clear()
    assert compiled == [1, 0]


async def test_a_planted_artifact_does_not_run(tmp_path: Path) -> None:
    """Whoever can write the folder gets a security event and a fresh compilation."""
    key = tmp_path / "cache.key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    values: dict[str, Any] = {
        "host__cache_key_file": str(key),
        "sandbox__cache_folder": str(tmp_path / "cache"),
    }
    async with Rig(**values) as rig:
        release = rig.publish("planted", guests.ECHO)
        rig.registry._products.pop(release.digest, None)
        engine = (await rig.pool.zygote.warm()).engine
        other, _ = make(tmp_path, key=bytes(32))
        other.put(release.digest, engine, product())
        assert (await rig.record(rig.ask("planted", b"x"))).output == b"x"
        kinds = {facts["kind"] for facts in rig.journal.of("security-event")}
        assert kinds == {"artifact-not-authentic"}
        rig.registry._products.clear()


async def test_large_modules_need_a_signer_who_may() -> None:
    """Above the standard size a module is refused, unless one of its signers is `large`."""
    code = guests.assemble(guests.ECHO) + wasm.custom("padding", bytes(2 * 2**20))
    module = signature.sign_module(guests.described(code, "big"), guests.AUTHOR)
    async with Rig() as rig:
        rig.store(module, "big")
        assert (await rig.record(rig.ask("big"))).code == "module.too-complex"
    large = ('tasks = ["*/*"]', 'tasks = ["*/*"]\nlarge = true')
    async with Rig(make_config(replaced=[large])) as rig:
        rig.store(module, "big")
        assert (await rig.record(rig.ask("big", b"x", tenant=TENANT))).output == b"x"


def test_the_description_is_a_frame() -> None:
    """What stands in front of the code is the compiler's own words, bounded like on the wire."""
    body = frames.encode(frames.Compiled((), (), 0, 0, ENGINE))[4:]
    assert frames.decode(body) == frames.Compiled((), (), 0, 0, ENGINE)
