/* Looks for a number whose hash is zero, and there is none. */
#include "executor_task.h"

static uint32_t hash(uint32_t value) {
  value ^= value >> 16;
  value *= 0x7feb352du;
  value ^= value >> 15;
  return value | 1; /* odd, and so never zero */
}

TASK(in) {
  volatile uint32_t found = 1;
  for (uint32_t value = (uint32_t)in.len; found; value++) found = hash(value);
  return OK;
}
