;; Calls itself for ever.
(module
  (memory (export "memory") 1)
  (func $run (export "run") (result i32)
    (i32.add (call $run) (i32.const 1))))
