;; Starts with a table of 30,000 elements, a third more than it may have.
(module
  (memory (export "memory") 1)
  (table 30000 funcref)
  (func (export "run") (result i32)
    (i32.const 0)))
