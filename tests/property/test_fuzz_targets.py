"""The fuzz targets, without their engine: each holds for its corpus and some mutations of it."""

from __future__ import annotations

import random
import sys

import pytest

from executor.core import wasm
from executor.errors import ExecutorError
from tests.fuzz import fuzz

COUNT = 300


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_target_holds_for_mutations(name: str) -> None:
    """Some inputs are taken and more are refused, by the promised codes alone."""
    taken, refused = fuzz.self_test(name, COUNT)
    assert taken + refused == len(fuzz.TARGETS[name][1]()) + COUNT
    assert 0 < taken < refused


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_any_short_input_is_survived(name: str) -> None:
    """Nothing, one byte and two bytes are inputs like any other."""
    target = fuzz.TARGETS[name][0]
    for data in (b"", *(bytes([n]) for n in range(256)), *(bytes([n, n]) for n in range(256))):
        target(data)


def test_mutations_are_repeatable() -> None:
    """Equal seeds give equal inputs, so that a failure can be run again."""
    corpus = fuzz.wasm_corpus()
    first, second = (
        [fuzz.mutate(random.Random(seed), corpus) for seed in range(50)] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 40


@pytest.mark.parametrize("error", [ValueError("no"), ExecutorError("internal.bug")])
def test_a_surprise_is_shown_with_its_input(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What is not promised ends the run, and the input that did it is in the message."""

    def sections(_data: bytes) -> None:
        raise error

    monkeypatch.setattr(wasm, "sections", sections)
    with pytest.raises(type(error)) as caught:
        fuzz.self_test("wasm", 1)
    assert caught.value.__notes__[0].startswith("target wasm, input 0061736d")


def test_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A self-test ends with 0; a wrong target, or no atheris, with 2 and what to do."""
    assert fuzz.main(["frames", "--self-test", "5"]) == 0
    assert capsys.readouterr().out.startswith("frames: ")
    for arguments in (
        [],
        ["no-such-target"],
        ["wasm", "--self-test"],
        ["wasm", "--self-test", "x"],
    ):
        assert fuzz.main(arguments) == 2
    assert "usage: python -m tests.fuzz.fuzz frames|" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert fuzz.main(["wasm"]) == 2
    assert "pip install atheris" in capsys.readouterr().err
