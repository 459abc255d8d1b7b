;; Calls through an empty place of a table.
(module
  (memory (export "memory") 1)
  (table 1 1 funcref)
  (func (export "run") (result i32)
    (call_indirect (result i32) (i32.const 0))))
