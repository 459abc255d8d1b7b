;; Reads its input from offset -1, where nothing is.
(module
  (import "executor:task@1" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (if (call $input_read (i32.const 0) (i32.const -1) (i32.const 64)) (then (unreachable)))
    (i32.const 0)))
