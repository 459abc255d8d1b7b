;; Imports a host function with 64-bit pointers.
(module
  (import "executor:task@1" "output_write" (func (param i64 i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (i32.const 0)))
