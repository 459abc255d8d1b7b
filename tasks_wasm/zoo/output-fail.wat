;; Writes output, fails, and returns 0 all the same.
(module
  (import "executor:task@1" "output_write" (func $output_write (param i32 i32)))
  (import "executor:task@1" "fail" (func $fail (param i32 i32 i32 i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $output_write (i32.const 0) (i32.const 6))
    (call $fail (i32.const 2) (i32.const 0) (i32.const 6) (i64.const 0))
    (i32.const 0))
  (data (i32.const 0) "secret"))
