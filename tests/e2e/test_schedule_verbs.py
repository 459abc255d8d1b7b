"""`executor schedule`: added, listed, fired, replaced and removed, as its user sees it."""

from __future__ import annotations

from tests.e2e.command import House, Shell
from tests.servers import eventually, run


def test_a_schedule_from_add_to_remove(house: House) -> None:
    """It is listed with its next firing, fires with its input, and is gone when removed."""
    added = house.json("schedule", "add", "wordcount", "-i", "a b", "--cron", "* * * * * *",
                       "--time-zone", "Europe/Berlin", "--id", "nightly")  # fmt: skip
    assert (added["action"], added["when"], added["input_bytes"]) == ("added", "* * * * * *", 3)
    assert added["time_zone"] == "Europe/Berlin"

    async def taken_up() -> bool:
        found = house.call("schedule", "list", "--json").objects()
        return [s["next_at"] is not None for s in found if s["id"] == "nightly"] == [True]

    async def fired() -> bool:
        return "task=acme/wordcount" in house.log and "scheduled" in house.log

    run(_all(taken_up, fired))
    text = house.run("schedule", "list").text
    assert "nightly" in text
    assert "acme/wordcount" in text
    assert "Europe/Berlin" in text
    removed = house.json("schedule", "remove", "nightly")
    assert (removed["action"], removed["task"]) == ("removed", "wordcount")
    assert "nightly" not in house.run("schedule", "list").text


async def _all(*looks: object) -> None:
    for look in looks:
        await eventually(look)  # type: ignore[arg-type]


def test_adding_twice_is_adding_once(house: House) -> None:
    """The same call again changes nothing; another rule under the same id replaces it."""
    again = ["schedule", "add", "wordcount", "-i", "x", "--every"]
    first, second = (house.json(*again, "2h") for _ in range(2))
    assert (first["action"], second["action"]) == ("added", "unchanged")
    assert first["id"] == second["id"]
    other = house.json(*again, "3h", "--id", first["id"])
    assert (other["action"], other["when"]) == ("replaced", "@every 10800s")
    house.run("schedule", "remove", first["id"])


def test_an_unknown_task_is_warned_of(house: House) -> None:
    """A schedule of a task without a module is taken, and said to fail until there is one."""
    done = house.run("schedule", "add", "nosuch", "--cron", "@yearly", "--id", "early")
    assert "warning" in done.err
    assert "executor publish" in done.err
    assert "warning" not in house.run(
        "schedule", "add", "wordcount", "--cron", "@yearly", "--id", "early"
    ).err  # fmt: skip
    # The same id of two tasks: which is asked.
    which = house.call("schedule", "remove", "early")
    assert which.code == 2
    assert "--task" in which.err
    for task in ("nosuch", "wordcount"):
        house.run("schedule", "remove", "early", "--task", task)


def test_a_five_field_rule_says_what_is_missing(shell: Shell) -> None:
    """The rule of most crontabs has no seconds: the message names all six fields."""
    done = shell.call("schedule", "add", "x", "--cron", "*/5 * * * *")
    assert done.code == 2
    assert "needs 6: second, minute, hour, day of the month, month, day of the week" in done.err
    never = shell.call("schedule", "add", "x", "--cron", "0 0 0 31 2 *")
    assert "never fires" in never.err


def test_a_task_at_a_time(house: House) -> None:
    """`--at` is a moment; one that is past is at once."""
    done = house.json("submit", "wordcount", "-i", "a b", "--at", "2020-01-31T09:30Z", "--wait")
    assert done["output"]["words"] == 2
