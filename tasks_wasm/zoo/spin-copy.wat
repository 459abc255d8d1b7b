;; Copies a megabyte over itself, one byte further, again and again.
(module
  (memory (export "memory") 16)
  (func (export "run") (result i32)
    (loop $again
      (memory.copy (i32.const 1) (i32.const 0) (i32.const 1048575))
      (br $again))
    (unreachable)))
