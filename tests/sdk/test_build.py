"""The build drivers: reproducible modules, typed refusals, and SDKs that speak exactly the ABI."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from executor.core import abi, manifest

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "tasks_wasm"
SDK = ROOT / "guest_sdk"
FOLDERS = sorted(path.parent for path in TASKS.rglob("task.toml"))
TIMEOUT_S = 100

needs_zig = pytest.mark.skipif(find_spec("ziglang") is None, reason="ziglang is not installed")


def _build(
    folder: Path, out: Path, *, work: Path | None = None, cwd: Path = ROOT, path: Path = ROOT
) -> tuple[int, dict[str, object]]:
    """Run the driver as users do; `path` goes in front of what Python finds."""
    command = [sys.executable, "-m", "guest_sdk.build", str(folder), "--out", str(out), "--json"]
    if work:
        command += ["--work", str(work)]
    search = os.pathsep.join(map(str, dict.fromkeys([path, ROOT])))
    finished = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": search}, timeout=TIMEOUT_S,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    facts = json.loads(finished.stdout)
    assert isinstance(facts, dict), finished.stderr
    assert facts["schema"] == "executor.guest-build/1"
    return finished.returncode, facts


def _error(folder: Path, out: Path, *, path: Path = ROOT) -> dict[str, str]:
    code, facts = _build(folder, out, path=path)
    assert code != 0
    assert not out.exists()
    error = facts["error"]
    assert isinstance(error, dict)
    assert set(error) == {"code", "message", "detail"}
    return error


def _task(folder: Path, source: str, *, name: str = "t.c", more: str = "") -> Path:
    """Make a folder with one small task in it."""
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(
        f'name = "t"\nversion = "1.0.0"\nsource = "{name}"\n{more}', encoding="utf-8"
    )
    (folder / name).write_text(source, encoding="utf-8")
    return folder


C_TASK = '#include "executor_task.h"\nTASK(in) { out(in); return OK; }\n'


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One toolchain cache for the builds that are not about caches."""
    return tmp_path_factory.mktemp("work")


@needs_zig
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_rebuilt_module_equals_the_committed_one(folder: Path, tmp_path: Path, work: Path) -> None:
    """A committed module is what its source builds to, from a copy under another path."""
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    name = folder.name
    out = tmp_path / f"{name}.wasm"
    code, facts = _build(copy, out, work=work)
    assert code == 0, facts
    digests = tomllib.loads((TASKS / "digests.toml").read_text(encoding="utf-8"))
    assert out.read_bytes() == (folder / f"{name}.wasm").read_bytes()
    assert digests[name] == f"sha256:{hashlib.sha256(out.read_bytes()).hexdigest()}"
    assert (facts["task"], facts["size"], facts["file"]) == (name, out.stat().st_size, str(out))


def test_every_committed_module_is_listed() -> None:
    """`digests.toml` names each example task, and nothing else."""
    digests = tomllib.loads((TASKS / "digests.toml").read_text(encoding="utf-8"))
    assert sorted(digests) == sorted(folder.name for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_manifest_says_what_task_toml_says(folder: Path) -> None:
    """The manifest in a committed module carries the name, the wants and the limits of its task."""
    module = (folder / f"{folder.name}.wasm").read_bytes()
    recipe = tomllib.loads((folder / "task.toml").read_text(encoding="utf-8"))
    found = manifest.read(module)
    assert (found.task, found.version) == (recipe["name"], recipe["version"])
    assert dict(found.limits) == recipe.get("limits", {})
    assert [(want.capability, want.scope, want.reason) for want in found.wants] == [
        (use["capability"], use.get("scope", ""), use["reason"]) for use in recipe.get("uses", [])
    ]


@needs_zig
@pytest.mark.parametrize("name", ["flaky", "wordcount-zig"])
def test_two_builds_are_identical(name: str, tmp_path: Path) -> None:
    """Two folders, two working directories, two empty caches: the same bytes."""
    built: list[bytes] = []
    for place in ("a", "b/c/d"):
        copy = shutil.copytree(TASKS / name, tmp_path / place / "source")
        out = tmp_path / place / "out.wasm"
        code, facts = _build(copy, out, cwd=tmp_path / place)
        assert code == 0, facts
        built.append(out.read_bytes())
    assert built[0] == built[1]
    assert str(tmp_path).encode() not in built[0]


@pytest.mark.covers("config.toolchain-missing")
def test_missing_compiler_names_the_command_that_installs_it(tmp_path: Path) -> None:
    """Without ziglang the error says which package to install, and in which version."""
    shadow = tmp_path / "shadow" / "ziglang"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").touch()  # a package that cannot be run
    error = _error(_task(tmp_path / "t", C_TASK), tmp_path / "t.wasm", path=shadow.parent)
    assert error["code"] == "config.toolchain-missing"
    assert "pip install 'ziglang==" in error["detail"]


def test_wrong_compiler_version_is_refused(tmp_path: Path) -> None:
    """Another version of the compiler would make other bytes, so it counts as missing."""
    shadow = tmp_path / "shadow" / "ziglang"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").touch()
    (shadow / "__main__.py").write_text("print('0.0.1')\n", encoding="utf-8")
    error = _error(_task(tmp_path / "t", C_TASK), tmp_path / "t.wasm", path=shadow.parent)
    assert error["code"] == "config.toolchain-missing"
    assert "0.0.1" in error["detail"]


def test_missing_engine_is_no_fault_of_the_text(tmp_path: Path) -> None:
    """Without the engine a WAT task reports the toolchain, not the module."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "wasmtime.py").write_text("raise ImportError('none')\n", encoding="utf-8")
    folder = _task(tmp_path / "t", "(module)", name="t.wat")
    error = _error(folder, tmp_path / "t.wasm", path=shadow)
    assert error["code"] == "config.toolchain-missing"


@pytest.mark.parametrize(
    ("name", "source", "word"),
    [
        pytest.param("t.c", "int x = nonsense;", "nonsense", marks=needs_zig),
        pytest.param("t.zig", "comptime { nonsense(); }", "nonsense", marks=needs_zig),
        ("t.wat", "(module (nonsense))", "nonsense"),
    ],
)
def test_broken_source_shows_the_compilers_words(
    tmp_path: Path, name: str, source: str, word: str
) -> None:
    """A source that does not compile is `module.invalid`, with bounded words and no build path."""
    error = _error(_task(tmp_path / "t", source, name=name), tmp_path / "t.wasm")
    assert error["code"] == "module.invalid"
    assert word in error["detail"]
    assert len(error["detail"]) <= 8 * 1024
    assert "executor-build-" not in error["detail"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ("sumary = 'x'", "sumary"),
        ("summary = 7", "summary"),
        ("language = 'cobol'", "language"),
        ("idempotent = 1", "idempotent"),
        ("uses = ['executor:kv@1']", "uses[0]"),
        ("[[uses]]\ncapability = 'executor:log@1'", "reason"),
        ("[limits]\nfule = 1", "limits.fule"),
        ("[limits]\nfuel = true", "limits.fuel"),
        ("[limits]\nfuel = -1", "fuel"),
        ("[sample]\ninput = '../t.c'", "../t.c"),
        ("not toml", "task.toml"),
    ],
)
def test_bad_task_toml_names_the_key(tmp_path: Path, more: str, word: str) -> None:
    """A mistake in task.toml is `config.invalid` and the detail names what to mend."""
    folder = _task(tmp_path / "t", '(module (memory (export "memory") 1))', name="t.wat", more=more)
    error = _error(folder, tmp_path / "t.wasm")
    assert error["code"] == "config.invalid"
    assert word in error["detail"]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    """Three mistakes in task.toml are three lines of one error."""
    folder = _task(tmp_path / "t", "(module)", name="t.wat", more="a = 1\nb = 2\nsummary = 3\n")
    detail = _error(folder, tmp_path / "t.wasm")["detail"]
    assert len(detail.splitlines()) == 3


def test_folder_without_task_toml_is_refused(tmp_path: Path) -> None:
    """A folder that holds no task is `config.invalid`, and nothing of it is read."""
    assert _error(tmp_path, tmp_path / "t.wasm")["code"] == "config.invalid"


def test_out_in_no_folder_is_a_typed_error(tmp_path: Path) -> None:
    """A file that cannot be written is `config.invalid` with its name, never a traceback."""
    folder = _task(tmp_path / "t", '(module (memory (export "memory") 1))', name="t.wat")
    error = _error(folder, tmp_path / "nowhere" / "t.wasm")
    assert error["code"] == "config.invalid"
    assert "nowhere" in error["detail"]


def test_work_inside_the_task_is_not_copied_into_itself(tmp_path: Path) -> None:
    """The build's own folder may lie in the task's folder."""
    folder = _task(tmp_path / "t", '(module (memory (export "memory") 1))', name="t.wat")
    code, facts = _build(folder, folder / "t.wasm", work=folder / "work")
    assert code == 0, facts


@needs_zig
def test_unlisted_capability_is_refused_with_the_lines_to_add(tmp_path: Path) -> None:
    """A call that task.toml does not list stops the build and shows what to paste."""
    source = C_TASK.replace("out(in);", 'log_info("%u", (unsigned)in.len);')
    error = _error(_task(tmp_path / "t", source), tmp_path / "t.wasm")
    assert error["code"] == "config.invalid"
    assert 'capability = "executor:log@1"' in error["detail"]
    code, facts = _build(_task(tmp_path / "plain", C_TASK), tmp_path / "plain.wasm")
    assert code == 0, facts  # the same header, nothing called: nothing asked for


Signatures = dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]


def _wasm(types: str) -> tuple[str, ...]:
    """Read `const void *key, int32_t n` and `key: [*]const u8, n: i32` as wasm types."""
    parts = [part for part in types.replace("\n", " ").split(",") if part.strip(" ")]
    return tuple("i64" if "64" in part else "i32" for part in parts if part.strip() != "void")


def _header() -> Signatures:
    text = (SDK / "c" / "executor_task.h").read_text(encoding="utf-8")
    pattern = r'TASK_IMPORT\("([^"]+)", "([^"]+)"\)\s+(\w+) task_host_(\w+)\(([^)]*)\);'
    found = re.findall(pattern, text)
    assert all(name == symbol for _, name, _, symbol, _ in found)
    return {name: (owner, _wasm(params), _wasm(result)) for owner, name, result, _, params in found}


def _zig() -> Signatures:
    text = (SDK / "zig" / "executor_task.zig").read_text(encoding="utf-8")
    found = re.findall(r'extern "([^"]+)" fn (\w+)\(([^)]*)\) (\w+);', text)
    return {name: (owner, _wasm(params), _wasm(result)) for owner, name, params, result in found}


def _page() -> Signatures:
    text = (SDK / "abi" / "README.md").read_text(encoding="utf-8")
    row = r"^\| (?:`(executor:\w+@1)` )?\| `(\w+)\(([^)]*)\)(?: -> (\w+))?`"
    rows = re.findall(row, text, re.MULTILINE)
    found: Signatures = {}
    owner = ""
    for module, name, params, result in rows:
        owner = module or owner
        found[name] = (owner, _wasm(params), _wasm(result))
    return found


@pytest.mark.parametrize("read", [_header, _zig, _page], ids=["header", "zig", "page"])
def test_sdk_names_exactly_the_functions_of_the_abi(read: object) -> None:
    """The C header, the Zig module and the ABI page hold each import, its types, and no other."""
    assert callable(read)
    expected = {name: (f.module, f.params, f.results) for name, f in abi.FUNCTIONS.items()}
    assert read() == expected


def test_sdk_error_numbers_are_those_of_the_abi() -> None:
    """The header and the Zig module map each error number of the ABI."""
    header = (SDK / "c" / "executor_task.h").read_text(encoding="utf-8")
    zig = (SDK / "zig" / "executor_task.zig").read_text(encoding="utf-8")
    numbers = {int(number) for number in re.findall(r"\bE_\w+ = (-\d)", header)}
    assert numbers == set(abi.ERRORS)
    assert {int(number) for number in re.findall(r"(-\d) => ", zig)} == set(abi.ERRORS)
