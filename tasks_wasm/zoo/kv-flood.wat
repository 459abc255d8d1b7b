;; Asks the store for ever.
(module
  (import "executor:kv@1" "kv_get" (func $kv_get (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (loop $again
      (drop (call $kv_get (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 8)))
      (br $again))
    (unreachable))
  (data (i32.const 0) "k"))
