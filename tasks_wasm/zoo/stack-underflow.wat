;; Drops what is not on its stack.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop)
    (i32.const 0)))
