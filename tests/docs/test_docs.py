"""The documents are run: console blocks, tables, message examples, links, configuration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor import config as configs
from executor.cli.main import cli
from executor.errors import TABLE
from tests.docs.message_examples import examples

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "node_modules", "build", "vectors"} & set(path.parts)
)


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@dataclass
class Step:
    """One command of a console block and the output that the page shows for it."""

    command: str
    shown: str


def _steps(block: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield Step(command, shown)


def _normal(text: str) -> str:
    """Output without what differs from run to run: times, digests, ids, spacing."""
    text = re.sub(r"\d+(\.\d+)? ms", "N ms", text)
    text = re.sub(r"sha256:[0-9a-f]{64}", "sha256:D", text)
    text = re.sub(r"ed25519:\S+", "ed25519:K", text)
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def _agrees(shown: str, real: str) -> bool:
    """Whether `real` is `shown`, where a line of … stands for any lines."""
    parts = [re.escape(part.strip("\n")) for part in re.split(r"(?m)^…$", _normal(shown))]
    pattern = r"(?:.*\n)*?.*".join(parts) if len(parts) > 1 else parts[0]
    return re.fullmatch(pattern, _normal(real), re.DOTALL) is not None


class Terminal:
    """Runs a page's commands one after the other, as its reader would."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._background: list[subprocess.Popen[bytes]] = []
        scripts = str(Path(sys.executable).parent)
        self._env = {
            **os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "EXECUTOR_NATS_URL": f"nats://127.0.0.1:{port}", "NO_COLOR": "1",
        }  # fmt: skip

    def run(self, command: str) -> str:
        """Run one line; what ends in & is awaited until it is ready."""
        if command.endswith("&"):
            return self._start(command.removesuffix("&").split())
        where = re.fullmatch(r"(.*) && cd (\S+)", command)
        done = subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", where[1] if where else command],
            cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=100,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if where:
            self.folder /= where[2]
        return done.stdout

    def _start(self, command: list[str]) -> str:
        ready = self.folder / "ready"
        os.mkfifo(ready)
        self._background.append(subprocess.Popen(
            [*command, "-q", "--ready-file", str(ready)], cwd=self.folder, env=self._env
        ))  # fmt: skip
        assert ready.read_text().strip()  # opens when the other end is there to write
        return ""

    def close(self) -> None:
        """End what runs in the background."""
        for process in self._background:
            process.terminate()
            process.wait(timeout=60)


def _readme_blocks() -> list[list[Step]]:
    return [list(_steps(block)) for block in _blocks(ROOT / "README.md", "console")]


def test_readme_setup_commands() -> None:
    """The README's first block is the two commands that .ci/run takes from there."""
    first = _readme_blocks()[0]
    assert [step.command.rsplit("/", 1)[-1] for step in first] == ["executor demo", "pytest"]
    assert all(step.command.startswith("python3 -m venv .venv && ") for step in first)


@pytest.mark.timeout(300)
def test_readme_console_blocks(tmp_path: Path, free_port: int) -> None:
    """Every other command of the README runs in order and prints what the page shows."""
    terminal = Terminal(tmp_path, free_port)
    try:
        for block in _readme_blocks()[1:]:
            for step in block:
                real = terminal.run(step.command)
                assert _agrees(step.shown, real), f"$ {step.command}\n{real}"
        for code in _blocks(ROOT / "README.md", "python"):
            terminal.run(f"{sys.executable} - <<'END'\n{code}\nEND")
    finally:
        terminal.close()


def test_code_table() -> None:
    """The table of codes in executor/README.md is the table in errors.py."""
    rows = [
        f"| `{r.code}` | {r.klass.value} | {r.who} | {r.exit} | {r.message} |"
        for r in TABLE.values()
    ]
    assert "\n".join(rows) in (ROOT / "executor" / "README.md").read_text()


def test_message_examples() -> None:
    """Each message of the page is the one that the code makes."""
    page = (ROOT / "executor" / "core" / "README.md").read_text()
    body = page.partition("compared in tests/docs -->\n")[2].partition("\n<!-- end -->")[0]
    assert body.strip() == examples().strip()


def test_every_verb_is_documented() -> None:
    """Each verb stands in cli/README.md and has an example in its help."""
    page = (ROOT / "executor" / "cli" / "README.md").read_text()
    for name, command in cli.commands.items():
        if name == "help":
            continue
        assert f"`{name}`" in page or f"`{name} …`" in page, name
        for verb in getattr(command, "commands", {name: command}).values():
            assert "Example: executor" in (verb.help or ""), verb.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    """Every link to a file of ours leads somewhere."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_folder_is_explained() -> None:
    """Every room has a README."""
    rooms = [ROOT, ROOT / "guest_sdk", ROOT / "tasks_wasm", ROOT / "tests", ROOT / "benchmarks"]
    rooms += [p for p in (ROOT / "executor").iterdir() if (p / "__init__.py").exists()]
    assert [room.name for room in rooms if not (room / "README.md").exists()] == []


def test_toml_of_init_loads(tmp_path: Path) -> None:
    """The configuration that `init` writes is valid and says what every part is for."""
    subprocess.run(
        [sys.executable, "-m", "executor.cli.main", "init", str(tmp_path)],
        check=True, capture_output=True,
    )  # fmt: skip
    config = configs.load(tmp_path / "executor.toml", {})
    assert [tenant.name for tenant in config.policy.tenants] == ["acme"]
    assert all(grant.why for grant in config.policy.grants)
