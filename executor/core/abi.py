"""The guest ABI, profile core v1, as one table; guest_sdk/abi is checked against it.

A module's import section is its capability request: it names functions, and each function
belongs to exactly one capability. Function names are unique without their module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VERSION: Final = 1
ENTRY: Final = "run"
INITIALIZE: Final = "_initialize"
MEMORY: Final = "memory"

TASK: Final = "executor:task@1"
LOG: Final = "executor:log@1"
CLOCK: Final = "executor:clock@1"
RANDOM: Final = "executor:random@1"
KV: Final = "executor:kv@1"

# Answers below zero; their text is parked for `take`.
NOT_FOUND: Final = -1
DENIED: Final = -2
BAD_ARGUMENT: Final = -3
UNAVAILABLE: Final = -4
TOO_LARGE: Final = -5
DEADLINE: Final = -6
ERRORS: Final = {
    NOT_FOUND: "not found", DENIED: "denied", BAD_ARGUMENT: "invalid argument",
    UNAVAILABLE: "unavailable", TOO_LARGE: "too large", DEADLINE: "deadline exceeded",
}  # fmt: skip

FAIL_RETRY: Final = 1
FAIL_PERMANENT: Final = 2
FAIL_MESSAGE_MAX: Final = 8 * 1024
LOG_LINE_MAX: Final = 4 * 1024
ERROR_TEXT_MAX: Final = 512
KV_KEY_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Function:
    """One import: wasm types as the engine spells them, and the process that serves it."""

    name: str
    module: str
    params: tuple[str, ...]
    results: tuple[str, ...]
    mediated: bool = False


def _function(module: str, name: str, signature: str, *, mediated: bool = False) -> Function:
    params, _, results = signature.partition("->")
    return Function(name, module, tuple(params.split()), tuple(results.split()), mediated)


FUNCTIONS: Final[dict[str, Function]] = {
    function.name: function
    for function in (
        _function(TASK, "input_len", "-> i32"),
        _function(TASK, "input_read", "i32 i32 i32 -> i32"),
        _function(TASK, "output_write", "i32 i32"),
        _function(TASK, "fail", "i32 i32 i32 i64"),
        _function(TASK, "take", "i32 i32 -> i32"),
        _function(LOG, "log_write", "i32 i32 i32"),
        _function(CLOCK, "clock_now_ns", "-> i64"),
        _function(RANDOM, "random_fill", "i32 i32"),
        _function(KV, "kv_get", "i32 i32 i32 i32 -> i64", mediated=True),
        _function(KV, "kv_put", "i32 i32 i32 i32 -> i64", mediated=True),
        _function(KV, "kv_delete", "i32 i32 -> i64", mediated=True),
    )
}

# In a set of functions as one number, a bit each.
BITS: Final[dict[str, int]] = {name: 1 << place for place, name in enumerate(FUNCTIONS)}

CAPABILITIES: Final[dict[str, tuple[str, ...]]] = {
    module: tuple(f.name for f in FUNCTIONS.values() if f.module == module)
    for module in (TASK, LOG, CLOCK, RANDOM, KV)
}

# `log` stands for `executor:log@1` in configuration and on the command line.
SHORT_NAMES: Final[dict[str, str]] = {
    module.partition(":")[2].partition("@")[0]: module for module in CAPABILITIES
}
