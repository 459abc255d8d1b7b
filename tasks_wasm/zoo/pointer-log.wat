;; Logs a line longer than memory, which is too long for a line as well.
(module
  (import "executor:log@1" "log_write" (func $log_write (param i32 i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $log_write (i32.const 1) (i32.const 0) (i32.const 65537))
    (i32.const 0)))
