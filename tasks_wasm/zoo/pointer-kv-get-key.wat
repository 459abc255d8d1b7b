;; Gets a key that lies behind memory.
(module
  (import "executor:kv@1" "kv_get" (func $kv_get (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (call $kv_get (i32.const 65536) (i32.const 4) (i32.const 0) (i32.const 16)))
    (i32.const 0)))
