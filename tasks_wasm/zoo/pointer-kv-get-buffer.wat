;; Gets a key into a buffer that wraps around to its beginning.
(module
  (import "executor:kv@1" "kv_get" (func $kv_get (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (call $kv_get (i32.const 0) (i32.const 1) (i32.const 4) (i32.const -4)))
    (i32.const 0)))
