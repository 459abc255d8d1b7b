;; Has data that lie outside memory at the start.
(module
  (memory (export "memory") 1)
  (data (i32.const 65534) "four")
  (func (export "run") (result i32)
    (i32.const 0)))
