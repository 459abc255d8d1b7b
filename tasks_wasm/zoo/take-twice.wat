;; Takes parked bytes twice, for what may lie behind them.
(module
  (import "executor:task@1" "take" (func $take (param i32 i32) (result i32)))
  (import "executor:kv@1" "kv_get" (func $kv_get (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (call $kv_get (i32.const 0) (i32.const 1) (i32.const 8) (i32.const 8)))
    (if (i32.gt_u (call $take (i32.const 0) (i32.const 65536)) (i32.const 512)) (then (unreachable)))
    (if (call $take (i32.const 0) (i32.const 65536)) (then (unreachable)))
    (i32.const 0))
  (data (i32.const 0) "k"))
