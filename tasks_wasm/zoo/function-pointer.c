/* Calls a number as if it were a function, as a corrupted vtable would. */
#include "executor_task.h"

TASK(in) {
  volatile uintptr_t number = 0x41414141u + in.len;
  int (*function)(int) = (int (*)(int))number;
  return function(1);
}
