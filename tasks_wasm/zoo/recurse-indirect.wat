;; Calls itself through a table for ever.
(module
  (memory (export "memory") 1)
  (table 1 1 funcref)
  (elem (i32.const 0) $run)
  (type $task (func (result i32)))
  (func $run (export "run") (result i32)
    (i32.add (call_indirect (type $task) (i32.const 0)) (i32.const 1))))
