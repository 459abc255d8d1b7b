;; Grows a table until refused, and traps if it got more than 20,000 elements.
(module
  (memory (export "memory") 1)
  (table $t 0 funcref)
  (func (export "run") (result i32)
    (loop $more
      (br_if $more
        (i32.ne (table.grow $t (ref.null func) (i32.const 100)) (i32.const -1))))
    (if (i32.gt_u (table.size $t) (i32.const 20000)) (then (unreachable)))
    (i32.const 0)))
