;; Two functions call each other 100 deep, again and again, below the stack's limit.
(module
  (memory (export "memory") 1)
  (func $even (param $n i32) (result i32)
    (if (result i32) (local.get $n)
      (then (call $odd (i32.sub (local.get $n) (i32.const 1))))
      (else (i32.const 1))))
  (func $odd (param $n i32) (result i32)
    (if (result i32) (local.get $n)
      (then (call $even (i32.sub (local.get $n) (i32.const 1))))
      (else (i32.const 0))))
  (func (export "run") (result i32)
    (loop $again
      (br_if $again (call $even (i32.const 100))))
    (i32.const 0)))
