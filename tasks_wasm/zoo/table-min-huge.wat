;; Starts with a table of four billion elements: 32 GiB before the first instruction.
(module
  (memory (export "memory") 1)
  (table 4294967295 funcref)
  (func (export "run") (result i32)
    (i32.const 0)))
