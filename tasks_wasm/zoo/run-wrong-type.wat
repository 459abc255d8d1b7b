;; Exports a `run` that takes and returns other things.
(module
  (memory (export "memory") 1)
  (func (export "run") (param i64) (result f64)
    (f64.const 0)))
