;; Puts a value of 16 MiB.
(module
  (import "executor:kv@1" "kv_put" (func $kv_put (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 256)
  (func (export "run") (result i32)
    (if
      (i64.ne
        (call $kv_put (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 16777216))
        (i64.const -5))
      (then (unreachable)))
    (i32.const 0))
  (data (i32.const 0) "k"))
