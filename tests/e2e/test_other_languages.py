"""A task asked for from JavaScript, with the public NATS client and nothing of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.command import House

PROGRAM = Path(__file__).with_name("raw_form.mjs")
PACKAGE = "@nats-io/transport-node@3"


def _node(folder: Path) -> str:
    """Node, with the package installed in `folder`; skips with the reason."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    try:
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts",
             "--cache", str(folder / "cache"), PACKAGE],
            cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not reach its registry within a minute")
    if done.returncode:
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr.strip()[-200:]}")
    return node


def test_javascript_asks_and_gets_the_result(house: House, tmp_path: Path) -> None:
    """The raw form from JavaScript leads to a stored result, which Python then verifies."""
    node = _node(tmp_path)
    program = tmp_path / PROGRAM.name
    program.write_bytes(PROGRAM.read_bytes())
    done = subprocess.run(
        [node, str(program), house.url, "from-js", "ein zwei drei"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heard = json.loads(done.stdout)
    assert heard["subject"] == "stored.result.acme.wordcount.from-js"
    assert '{"words":3,"distinct":3}' in heard["holds"]
    found = house.json("result", "from-js")
    assert found["output"] == {"words": 3, "distinct": 3}
