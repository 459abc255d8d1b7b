;; Takes memory until it is refused, writing to every page so that the host has to back it.
;; A refused grow answers -1 and does not trap: the trap behind it is the module's own.
(module
  (memory (export "memory") 1)
  (func $balloon (export "run") (result i32)
    (local $page i32)
    (loop $again
      (local.set $page (memory.grow (i32.const 1)))
      (if (i32.ne (local.get $page) (i32.const -1))
        (then
          (i32.store (i32.shl (local.get $page) (i32.const 16)) (i32.const 1))
          (br $again))))
    (unreachable)))
