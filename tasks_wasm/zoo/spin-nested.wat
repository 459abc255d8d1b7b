;; Loops inside loops, each with an end, but together longer than anyone lives.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (local $a i64) (local $b i64)
    (loop $outer
      (local.set $b (i64.const 1000000000000))
      (loop $inner
        (local.set $b (i64.sub (local.get $b) (i64.const 1)))
        (br_if $inner (i64.ne (local.get $b) (i64.const 0))))
      (local.set $a (i64.add (local.get $a) (i64.const 1)))
      (br_if $outer (i64.ne (local.get $a) (i64.const 1000000000000))))
    (i32.const 0)))
