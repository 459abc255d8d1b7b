;; Loops for ever: the fuel ends it, at the same instruction each time.
(module
  (memory (export "memory") 1)
  (func $spin (export "run") (result i32)
    (loop $again (br $again))
    (unreachable)))
