;; Writes output for ever.
(module
  (import "executor:task@1" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (loop $again
      (call $output_write (i32.const 0) (i32.const 4096))
      (br $again))
    (unreachable)))
