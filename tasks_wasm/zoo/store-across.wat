;; Stores eight bytes of which one lies behind memory.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (i64.store (i32.const 65529) (i64.const -1))
    (i32.const 0)))
