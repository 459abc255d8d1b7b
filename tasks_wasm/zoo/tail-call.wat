;; Loops by tail calls, without a stack to exhaust.
(module
  (memory (export "memory") 1)
  (func $run (export "run") (result i32)
    (return_call $run)))
