;; Fails with a message of 1 MiB.
(module
  (import "executor:task@1" "fail" (func $fail (param i32 i32 i32 i64)))
  (memory (export "memory") 16)
  (func (export "run") (result i32)
    (call $fail (i32.const 2) (i32.const 0) (i32.const 1048576) (i64.const 0))
    (i32.const 0)))
