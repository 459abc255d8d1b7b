;; Imports a version of a capability that does not exist.
(module
  (import "executor:kv@2" "kv_get" (func (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (i32.const 0)))
