;; Writes output of length -1.
(module
  (import "executor:task@1" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $output_write (i32.const 8) (i32.const -1))
    (i32.const 0)))
