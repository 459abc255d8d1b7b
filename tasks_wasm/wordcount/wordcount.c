/* Counts words, and how many of them differ, in memory that the input cannot make grow. */
#include "executor_task.h"

enum { SLOTS = 8192, DISTINCT_MAX = SLOTS / 4 * 3 }; /* 64 KiB; fuller tables probe too long */

static bytes table[SLOTS];

/* FNV-1a, 32 bit. */
static uint32_t hash(bytes word) {
  uint32_t value = 2166136261u;
  for (size_t i = 0; i < word.len; i++) value = (value ^ (unsigned char)word.ptr[i]) * 16777619u;
  return value;
}

/* The word's slot: its own, or the free one where it belongs. */
static bytes *find(bytes word) {
  uint32_t slot = hash(word) % SLOTS;
  while (table[slot].ptr && !equal(table[slot], word)) slot = (slot + 1) % SLOTS;
  return &table[slot];
}

TASK(in) {
  unsigned words = 0, distinct = 0;
  bool capped = false;
  for (bytes word; next_word(&in, &word); words++) {
    bytes *slot = find(word);
    if (slot->ptr) continue;
    if (distinct == DISTINCT_MAX) {
      capped = true; /* still counted as a word; the output says that there are more */
      continue;
    }
    *slot = word;
    distinct++;
  }
  log_info("counted %u words, %u distinct", words, distinct);
  outf("{\"words\":%u,\"distinct\":%u%s}", words, distinct, capped ? ",\"capped\":true" : "");
  return OK;
}
