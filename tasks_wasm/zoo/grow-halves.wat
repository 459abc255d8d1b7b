;; Asks for 4 GiB, then for half as much each time it is refused, then touches all it got.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (local $want i32) (local $at i32)
    (local.set $want (i32.const 65535))
    (loop $more
      (if (i32.eq (memory.grow (local.get $want)) (i32.const -1))
        (then (local.set $want (i32.shr_u (local.get $want) (i32.const 1)))))
      (br_if $more (local.get $want)))
    (loop $again
      (i32.store (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 65536)))
      (br_if $again
        (i32.lt_u (local.get $at) (i32.shl (memory.size) (i32.const 16)))))
    (unreachable)))
