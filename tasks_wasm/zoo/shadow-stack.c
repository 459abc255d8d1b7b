/* Overruns the C stack in linear memory, which the engine knows nothing of. */
#include "executor_task.h"

static int deeper(volatile char *before) {
  volatile char here[4096];
  here[0] = (char)(before[0] + 1);
  return deeper(here) + here[0];
}

TASK(in) {
  volatile char first[1] = {(char)in.len};
  outf("%d", deeper(first));
  return OK;
}
