;; Logs 9,000 short lines.
(module
  (import "executor:log@1" "log_write" (func $log_write (param i32 i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (local $n i32)
    (loop $again
      (call $log_write (i32.const 1) (i32.const 0) (i32.const 4))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 9000))))
    (i32.const 0))
  (data (i32.const 0) "line"))
