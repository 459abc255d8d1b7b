;; Writes 16 MiB of output in one call.
(module
  (import "executor:task@1" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 256)
  (func (export "run") (result i32)
    (call $output_write (i32.const 0) (i32.const 16777216))
    (i32.const 0)))
