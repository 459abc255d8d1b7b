;; Deletes a key at a negative pointer.
(module
  (import "executor:kv@1" "kv_delete" (func $kv_delete (param i32 i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (call $kv_delete (i32.const -1) (i32.const 1)))
    (i32.const 0)))
