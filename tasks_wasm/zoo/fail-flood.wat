;; Fails for ever: the last word counts, and every one is kept until the next.
(module
  (import "executor:task@1" "fail" (func $fail (param i32 i32 i32 i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (loop $again
      (call $fail (i32.const 2) (i32.const 0) (i32.const 8192) (i64.const 0))
      (br $again))
    (unreachable)))
