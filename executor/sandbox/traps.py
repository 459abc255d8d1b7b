"""What the engine says when it stops a guest, as codes and facts.

The names of functions come from the module and are the guest's words: bounded here, escaped by
whoever shows them.
"""

from __future__ import annotations

from typing import Final

import wasmtime

from executor.sandbox.machine import Bug, Ended, Facts

FRAMES_MAX: Final = 8
NAME_MAX: Final = 128

_CODES: Final = {
    wasmtime.TrapCode.OUT_OF_FUEL: "limit.fuel-exhausted",
    wasmtime.TrapCode.STACK_OVERFLOW: "limit.stack-exhausted",
}
# How the engine words a refused start: the store's limits have no code of their own.
_LIMIT_TEXTS: Final = ("exceeds memory limits", "exceeds table limits", "resource limit exceeded")


def ended(trap: wasmtime.Trap) -> Ended:
    """The ending that this trap means; memory at its cap is judged in `instance`, not here."""
    try:
        code = trap.trap_code
    except ValueError:  # a code that the library does not name
        code = None
    name = "unknown" if code is None else code.name.lower().replace("_", "-")
    frames = _frames(trap)
    message = f"{name} in {frames[0][1]}" if frames else name
    key = _CODES.get(code, "guest.trap") if code is not None else "guest.trap"
    return Ended(key, message, (("trap", name), *frames))


def refused(error: wasmtime.WasmtimeError) -> Ended:
    """The ending of an instance that the store's limits refused.

    Errors  `Bug` on anything else: the module was linked once before, so the host is at fault.
    """
    text = str(error)
    if any(known in text for known in _LIMIT_TEXTS):
        return Ended("limit.memory-exceeded", text[:NAME_MAX])
    raise Bug(text)


def _frames(trap: wasmtime.Trap) -> Facts:
    facts: list[tuple[str, str]] = []
    for index, frame in enumerate(trap.frames[:FRAMES_MAX]):
        try:
            name = frame.func_name
        except UnicodeDecodeError:
            name = None
        facts.append((f"frame{index}", (name or f"function {frame.func_index}")[:NAME_MAX]))
    return tuple(facts)
