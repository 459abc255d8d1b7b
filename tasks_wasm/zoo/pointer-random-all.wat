;; Asks for 4 GiB of random bytes.
(module
  (import "executor:random@1" "random_fill" (func $random_fill (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (call $random_fill (i32.const 0) (i32.const -1))
    (i32.const 0)))
