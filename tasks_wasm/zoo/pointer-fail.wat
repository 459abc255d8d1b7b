;; Fails with a message whose pointer and length wrap to a range inside memory.
(module
  (import "executor:task@1" "fail" (func $fail (param i32 i32 i32 i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $fail (i32.const 2) (i32.const -16) (i32.const 32) (i64.const 0))
    (i32.const 0)))
