"""What executors say of themselves is shown, whatever it is, and never believed."""

from __future__ import annotations

import pytest

from executor.cli.fleet import page, said_of


@pytest.mark.parametrize(
    "report",
    ["", "[" * 8000, "[]", "null", '{"levels": []}', '{"levels": {"running": "x"}}',
     '{"settled": {"ok": "x"}}', '{"settled": 3}', '{"version": ["\\u001b[2J"], "ready": {}}'],
)  # fmt: skip
def test_no_report_keeps_the_others_from_being_seen(report: str) -> None:
    """Junk under a good signature: the executor is there, and what it says is left out."""
    one = {**said_of(report), "name": "host", "at": 1}
    text = page({"executors": [one], "queues": [], "held_up": []})
    assert "host" in text
    assert "\x1b" not in text


def test_a_report_is_shown() -> None:
    """Its harmless twin."""
    assert said_of('{"settled": {"ok": 3}, "version": "1"}') == {
        "settled": {"ok": 3}, "version": "1",
    }  # fmt: skip
