;; Takes parked bytes to a negative pointer, with nothing parked.
(module
  (import "executor:task@1" "take" (func $take (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (call $take (i32.const -2147483648) (i32.const 1)))
    (i32.const 0)))
