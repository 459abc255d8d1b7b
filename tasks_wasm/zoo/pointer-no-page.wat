;; Has a memory without a page, and writes its first byte out.
(module
  (import "executor:task@1" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 0)
  (func (export "run") (result i32)
    (call $output_write (i32.const 0) (i32.const 1))
    (i32.const 0)))
