"""Every module of the malformed corpus, through real compiler processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from executor.core.frames import Compiled, Rejected
from tests.support import malformed
from tests.support.nursery import Nursery

if TYPE_CHECKING:
    from tests.sandbox.conftest import Rooms


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """One fork server: where memory comes from makes no difference to a compiler."""
    made = Nursery()
    yield made
    made.close()


def test_malformed_modules_are_refused(rooms: Rooms) -> None:
    """Whatever is wrong with a module, it is refused by name; no compiler dies of it."""
    corpus = malformed.corpus()
    assert len(corpus) >= 200
    assert len({name for name, _ in corpus}) == len(corpus)
    wrong: dict[str, object] = {}
    codes: set[str] = set()
    for name, module in corpus:
        used_up = type(rooms)(rooms.nursery)  # descriptors are given back after each
        answer, _, status = used_up.compile(module)
        used_up.close()
        if not isinstance(answer, Rejected) or status != 0:
            wrong[name] = (answer, status)
        elif not answer.code.startswith("module.") or "\n" in answer.message:
            wrong[name] = answer
        else:
            codes.add(answer.code)
    assert wrong == {}
    assert codes >= {"module.invalid", "module.too-complex"}, codes
    assert rooms.nursery.process.poll() is None
    # The twin: the guest that the faults were put into is fine.
    answer, _, status = rooms.compile(malformed.build())
    assert isinstance(answer, Compiled)
    assert status == 0
