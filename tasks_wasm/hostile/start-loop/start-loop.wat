;; Loops in its start function, before anybody calls `run`: instantiation burns fuel too.
(module
  (memory (export "memory") 1)
  (func $start
    (loop $again (br $again)))
  (func (export "run") (result i32)
    (i32.const 0))
  (start $start))
