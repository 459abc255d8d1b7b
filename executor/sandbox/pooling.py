"""The pooling allocator: memory and tables of instances come from slots mapped once.

The library has no public setting for it, so this file alone uses its bindings. One guest runs at a
time and one tenant a process, so two slots do; what a slot held is zeroed before its next use (a
test reuses dirty slots 10,000 times). The limits of every Store hold beside the sizes here.
"""

from __future__ import annotations

from typing import Final

import wasmtime
from wasmtime import _bindings

from executor.sizes import KIB

SLOTS: Final = 2
TABLES_A_MODULE: Final = 8  # the Store's own limit is lower
TABLE_ELEMENTS_MAX: Final = 1_000_000
MEMORY_MAX: Final = 1 << 32  # all that 32 bits address: the Store's own limit is lower
# Zeroed by hand up to here, given back to the kernel beyond. A page fault costs as much as zeroing
# dozens of pages; three times 64 KiB hold a small guest with its stack, its data and its input.
KEEP_BYTES: Final = 192 * KIB

_SIZES: Final = {
    "total_core_instances": SLOTS, "total_memories": SLOTS, "max_memories_per_module": 1,
    "total_tables": SLOTS * TABLES_A_MODULE, "max_tables_per_module": TABLES_A_MODULE,
    "table_elements": TABLE_ELEMENTS_MAX, "max_memory_size": MEMORY_MAX,
    "linear_memory_keep_resident": KEEP_BYTES, "table_keep_resident": KEEP_BYTES,
    "total_component_instances": 0, "total_stacks": 0, "total_gc_heaps": 0,
    "max_unused_warm_slots": SLOTS, "decommit_batch_size": 1,
}  # fmt: skip


def enable(config: wasmtime.Config) -> None:
    """Make engines of this Config allocate from a pool."""
    pool = _bindings.wasmtime_pooling_allocation_config_new()
    try:
        for name, value in _SIZES.items():
            getattr(_bindings, f"wasmtime_pooling_allocation_config_{name}_set")(pool, value)
        _bindings.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    finally:
        _bindings.wasmtime_pooling_allocation_config_delete(pool)
