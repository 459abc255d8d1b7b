;; Takes an integer for a function reference.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (drop (ref.is_null (i32.const 1)))
    (i32.const 0)))
