;; Calls a function through a table as one of another type.
(module
  (memory (export "memory") 1)
  (table 1 1 funcref)
  (elem (i32.const 0) $f)
  (func $f (param i64 i64))
  (func (export "run") (result i32)
    (call_indirect (result i32) (i32.const 0))))
