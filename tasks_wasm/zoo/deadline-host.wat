;; Spends its deadline inside the host: half a megabyte of random bytes a call.
(module
  (import "executor:random@1" "random_fill" (func $random_fill (param i32 i32)))
  (memory (export "memory") 8)
  (func (export "run") (result i32)
    (loop $again
      (call $random_fill (i32.const 0) (i32.const 524288))
      (br $again))
    (unreachable)))
