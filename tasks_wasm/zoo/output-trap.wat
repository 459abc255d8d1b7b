;; Writes output, then traps, so that half an answer might pass for one.
(module
  (import "executor:task@1" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $output_write (i32.const 0) (i32.const 6))
    (unreachable))
  (data (i32.const 0) "secret"))
