;; Puts under a key of length -1.
(module
  (import "executor:kv@1" "kv_put" (func $kv_put (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (call $kv_put (i32.const 1) (i32.const -1) (i32.const 0) (i32.const 1)))
    (i32.const 0)))
