;; Has eight tables of 20,000 elements each, where the limit counts one table.
(module
  (memory (export "memory") 1)
  (table 20000 funcref)
  (table 20000 funcref)
  (table 20000 funcref)
  (table 20000 funcref)
  (table 20000 funcref)
  (table 20000 funcref)
  (table 20000 funcref)
  (table 20000 funcref)
  (func (export "run") (result i32)
    (i32.const 0)))
