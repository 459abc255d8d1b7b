"""Our rules and bandit: our code keeps them, and each planted fault is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.tidy import rules

ROOT: Final = Path(__file__).parents[2]
OURS: Final = [ROOT / name for name in ("executor", "guest_sdk", "supply")]
# Bandit's rules that are not kept, and why; the same are ignored in pyproject.toml for ruff.
SKIPPED: Final = {
    "B101": "asserts state what must hold; security checks are never asserts",
    "B404": "subprocess is how processes are started here",
    "B603": "every call takes a list, never a shell",
}

PLANTED: Final = {
    "import pickle": "import pickle",
    "import yaml": "import yaml",
    "import multiprocessing": "from multiprocessing.pool import Pool",
    "import marshal": "def f():\n    import marshal",
    "eval": "eval('1')",
    "exec": "exec('1')",
    "compile": "compile('1', '', 'exec')",
    "__import__": "__import__('os')",
    "os.system": "import os\nos.system('true')",
    "os.popen": "from os import popen",
    "subprocess.getoutput": "import subprocess\nsubprocess.getoutput('true')",
    "tempfile.mktemp": "import tempfile\ntempfile.mktemp()",
    "ssl._create_unverified_context": "import ssl\nc = ssl._create_unverified_context",
    "hashlib.md5": "import hashlib\nhashlib.md5(b'')",
    "extractall": "archive.extractall()",
    "shell=True": "import subprocess\nsubprocess.run('true', shell=True)",
    "verify=False": "client.get('https://example.org', verify=False)",
    "check_hostname=False": "dict(check_hostname=False)",
}


def test_our_code_keeps_our_rules() -> None:
    """Nothing of ours reads what runs, starts a shell, or turns a check off."""
    assert rules.breaches_below(*OURS) == []


@pytest.mark.parametrize(("rule", "source"), PLANTED.items(), ids=PLANTED.keys())
def test_a_planted_breach_is_found(rule: str, source: str) -> None:
    """Each rule finds the fault it is for, and nothing else in it."""
    assert [found for _, found in rules.breaches(source)] == [rule]


def test_a_planted_file_is_found(tmp_path: Path) -> None:
    """A fault anywhere below a folder is named with its place."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bad.py").write_text("x = 1\nimport pickle\n")
    assert rules.breaches_below(tmp_path) == [f"{tmp_path}/deep/bad.py:2: import pickle"]


@pytest.mark.parametrize(
    "harmless",
    [
        "import re\nre.compile('x')", "self.exec()", "import json\njson.loads('1')",
        "subprocess.run(['true'], shell=False)", "import hashlib\nhashlib.sha256()",
        "def evaluate(): ...", "connect(verify=True)", "import codecs",
    ],
)  # fmt: skip
def test_harmless_code_passes(harmless: str) -> None:
    """What only looks alike is no breach."""
    assert list(rules.breaches(harmless)) == []


def bandit(*targets: Path) -> list[dict[str, Any]]:
    """What bandit finds in these, of any severity; it must have looked at something."""
    done = subprocess.run(
        [sys.executable, "-m", "bandit", "-q", "-r", "-f", "json", "-s", ",".join(SKIPPED),
         *map(str, targets)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["errors"] == []
    assert report["metrics"]["_totals"]["loc"] > 0, "nothing was looked at"
    found: list[dict[str, Any]] = report["results"]
    return found


def test_bandit() -> None:
    """Bandit has nothing to say about our code that is not answered beside the line."""
    found = bandit(*OURS)
    assert [f"{each['filename']}:{each['line_number']}: {each['test_id']}" for each in found] == []


def test_bandit_finds_planted_faults(tmp_path: Path) -> None:
    """An unsafe load, a shell and an evaluation are each found: it is really looking."""
    faults = {
        "B301": "import pickle\npickle.loads(b'')\n",
        "B602": "import subprocess\nsubprocess.run(x, shell=True)\n",
        "B307": "eval(x)\n",
        "B506": "import yaml\nyaml.load(x)\n",
        "B306": "import tempfile\ntempfile.mktemp()\n",
    }
    for name, source in faults.items():
        (tmp_path / f"{name}.py").write_text(source)
    found = {(Path(each["filename"]).stem, each["test_id"]) for each in bandit(tmp_path)}
    assert {(name, name) for name in faults} <= found
