;; Asks for a retry in 292 million years.
(module
  (import "executor:task@1" "fail" (func $fail (param i32 i32 i32 i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $fail (i32.const 1) (i32.const 0) (i32.const 0) (i64.const 9223372036854775807))
    (i32.const 0)))
