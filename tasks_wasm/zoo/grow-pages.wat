;; Asks for memory page by page until refused, then touches all of it.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (local $at i32)
    (loop $more
      (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    (loop $again
      (i32.store (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 65536)))
      (br_if $again
        (i32.lt_u (local.get $at) (i32.shl (memory.size) (i32.const 16)))))
    (unreachable)))
