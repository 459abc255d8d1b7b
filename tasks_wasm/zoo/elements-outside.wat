;; Has elements that lie outside the table at the start.
(module
  (memory (export "memory") 1)
  (table 1 1 funcref)
  (elem (i32.const 1) $f)
  (func $f)
  (func (export "run") (result i32)
    (i32.const 0)))
