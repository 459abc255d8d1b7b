;; Asks for random bytes across the end of memory.
(module
  (import "executor:random@1" "random_fill" (func $random_fill (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $random_fill (i32.const 65535) (i32.const 2))
    (i32.const 0)))
