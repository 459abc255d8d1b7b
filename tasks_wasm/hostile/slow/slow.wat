;; Loops for ever: given more fuel than a processor burns before the deadline, the deadline ends it.
(module
  (memory (export "memory") 1)
  (func $slow (export "run") (result i32)
    (loop $again (br $again))
    (unreachable)))
