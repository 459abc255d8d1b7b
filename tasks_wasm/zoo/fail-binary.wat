;; Fails with bytes that are no text, and with terminal escapes.
(module
  (import "executor:task@1" "fail" (func $fail (param i32 i32 i32 i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $fail (i32.const 2) (i32.const 0) (i32.const 16) (i64.const 0))
    (i32.const 0))
  (data (i32.const 0) "\ff\fe\1b[2J\00\c0\80\ed\a0\80\0d\0a\e2\80"))
