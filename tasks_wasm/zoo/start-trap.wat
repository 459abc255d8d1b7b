;; Traps in the start section.
(module
  (memory (export "memory") 1)
  (start $begin)
  (func $begin
    (unreachable))
  (func (export "run") (result i32)
    (i32.const 0)))
