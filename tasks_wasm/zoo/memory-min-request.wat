;; Starts with 2 MiB of memory where the request allows one.
(module
  (memory (export "memory") 32)
  (func (export "run") (result i32)
    (i32.const 0)))
