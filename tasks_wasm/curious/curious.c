/* Wants a store and a clock that nobody granted: it is refused before it runs. */
#include "executor_task.h"

TASK(in) {
  bytes last = kv_get("last-visit");
  kv_put("last-visit", textf("%lld", (long long)clock_now_ns()));
  outf("last visit: %.*s", SHOW(last));
  return OK;
}
