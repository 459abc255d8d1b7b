;; Exports `_start` beside `run`, to be taken for a program.
(module
  (memory (export "memory") 1)
  (func (export "_start"))
  (func (export "run") (result i32)
    (i32.const 0)))
