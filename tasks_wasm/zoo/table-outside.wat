;; Reads a table behind its end.
(module
  (memory (export "memory") 1)
  (table $t 1 funcref)
  (func (export "run") (result i32)
    (ref.is_null (table.get $t (i32.const 1)))))
