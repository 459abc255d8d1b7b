;; Reads no input, from behind its end, into a range outside memory.
(module
  (import "executor:task@1" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (call $input_read (i32.const 65535) (i32.const 9999) (i32.const 2)))
    (i32.const 0)))
