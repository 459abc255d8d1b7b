;; Loops by calls through a table, so that no loop stands in the code that calls.
(module
  (memory (export "memory") 1)
  (table 2 2 funcref)
  (elem (i32.const 0) $one $two)
  (type $step (func (param i32) (result i32)))
  (func $one (param $n i32) (result i32)
    (i32.add (local.get $n) (i32.const 1)))
  (func $two (param $n i32) (result i32)
    (i32.add (local.get $n) (i32.const 2)))
  (func (export "run") (result i32)
    (local $n i32)
    (loop $again
      (local.set $n
        (call_indirect (type $step) (local.get $n) (i32.and (local.get $n) (i32.const 1))))
      (br $again))
    (unreachable)))
