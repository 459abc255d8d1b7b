;; Calls itself for ever in the start section.
(module
  (memory (export "memory") 1)
  (start $begin)
  (func $begin
    (call $begin)
    (i32.store (i32.const 0) (i32.const 1)))
  (func (export "run") (result i32)
    (i32.const 0)))
