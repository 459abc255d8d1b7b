;; Loops for ever.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (loop $again
      (br $again))
    (unreachable)))
