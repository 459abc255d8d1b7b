"""The ABI table: shipped signatures never change, and names are unique without their module."""

from __future__ import annotations

from executor.core import abi

# Version 1 as it was shipped: a change here is a change of the interface.
SHIPPED = {
    "executor:task@1": {
        "input_len": "->i32", "input_read": "i32 i32 i32->i32", "output_write": "i32 i32->",
        "fail": "i32 i32 i32 i64->", "take": "i32 i32->i32",
    },
    "executor:log@1": {"log_write": "i32 i32 i32->"},
    "executor:clock@1": {"clock_now_ns": "->i64"},
    "executor:random@1": {"random_fill": "i32 i32->"},
    "executor:kv@1": {
        "kv_get": "i32 i32 i32 i32->i64", "kv_put": "i32 i32 i32 i32->i64",
        "kv_delete": "i32 i32->i64",
    },
}  # fmt: skip


def test_shipped_functions_are_still_there() -> None:
    """Every function keeps its module, its name and its types."""
    assert {
        module: {
            name: f"{' '.join(abi.FUNCTIONS[name].params)}->{' '.join(abi.FUNCTIONS[name].results)}"
            for name in names
        }
        for module, names in abi.CAPABILITIES.items()
    } == SHIPPED


def test_each_function_belongs_to_one_capability() -> None:
    """A bare name is enough to find the capability."""
    listed = [name for names in abi.CAPABILITIES.values() for name in names]
    assert sorted(listed) == sorted(abi.FUNCTIONS)
    for name, function in abi.FUNCTIONS.items():
        assert function.name == name
        assert name in abi.CAPABILITIES[function.module]


def test_only_kv_leaves_the_sandbox() -> None:
    """Everything that is not kv is served without the supervisor."""
    mediated = {name for name, function in abi.FUNCTIONS.items() if function.mediated}
    assert mediated == {"kv_get", "kv_put", "kv_delete"}


def test_short_names() -> None:
    """Configuration and command line name a capability by its middle part."""
    assert abi.SHORT_NAMES == {
        "task": abi.TASK, "log": abi.LOG, "clock": abi.CLOCK, "random": abi.RANDOM, "kv": abi.KV,
    }  # fmt: skip


def test_error_numbers_are_those_of_the_abi() -> None:
    """Each answer below zero has its number and a text that fits the park."""
    assert list(abi.ERRORS) == [-1, -2, -3, -4, -5, -6]
    assert all(0 < len(text.encode()) <= abi.ERROR_TEXT_MAX for text in abi.ERRORS.values())
