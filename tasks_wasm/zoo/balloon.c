/* Allocates and uses memory until there is none, as a leaking program would. */
#include "executor_task.h"

TASK(in) {
  size_t pages = in.len;
  for (;;) {
    size_t page = __builtin_wasm_memory_grow(0, 1);
    if (page == (size_t)-1) break;
    *(volatile char *)(page * TASK_PAGE) = 1;
    pages++;
  }
  outf("%u pages", (unsigned)pages);
  __builtin_trap();
}
