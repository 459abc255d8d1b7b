;; Loops in the start section, before anyone called it.
(module
  (memory (export "memory") 1)
  (start $begin)
  (func $begin
    (loop $again
      (br $again)))
  (func (export "run") (result i32)
    (i32.const 0)))
