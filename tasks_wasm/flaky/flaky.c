/* Fails the first time it sees an input and succeeds the next: what a retry is for. */
#include "executor_task.h"

TASK(in) {
  bytes key = textf("seen-%.*s", SHOW(in));
  bytes seen = kv_get(key);
  if (!seen.ptr) {
    kv_put(key, "1");
    log_warn("first attempt for `%.*s`: asking for another", SHOW(in));
    retry("not ready on the first attempt", 50);
  }
  log_info("second attempt for `%.*s`", SHOW(in));
  outf("done: %.*s", SHOW(in));
  return OK;
}
