;; Puts under keys that would leave its prefix or match others.
(module
  (import "executor:kv@1" "kv_put" (func $kv_put (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (data (i32.const 0) "../x" "a..b" "a.*." "a.>" "a b" ".a" "a." "\00" "\ff")
  (func $try (param $at i32) (param $length i32)
    (if
      (i64.ne
        (call $kv_put (local.get $at) (local.get $length) (i32.const 0) (i32.const 1))
        (i64.const -3))
      (then (unreachable))))
  (func (export "run") (result i32)
    (call $try (i32.const 0) (i32.const 4))
    (call $try (i32.const 4) (i32.const 4))
    (call $try (i32.const 8) (i32.const 4))
    (call $try (i32.const 12) (i32.const 3))
    (call $try (i32.const 15) (i32.const 3))
    (call $try (i32.const 18) (i32.const 2))
    (call $try (i32.const 20) (i32.const 2))
    (call $try (i32.const 22) (i32.const 1))
    (call $try (i32.const 23) (i32.const 1))
    (call $try (i32.const 0) (i32.const 0))
    (call $try (i32.const 0) (i32.const 65536))
    (i32.const 0)))
