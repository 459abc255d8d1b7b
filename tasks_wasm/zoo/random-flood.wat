;; Asks for random bytes for ever.
(module
  (import "executor:random@1" "random_fill" (func $random_fill (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (loop $again
      (call $random_fill (i32.const 0) (i32.const 65536))
      (br $again))
    (unreachable)))
