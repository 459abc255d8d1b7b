;; Has a memory with pages of one byte.
(module
  (memory (export "memory") 1 (pagesize 1))
  (func (export "run") (result i32)
    (i32.const 0)))
