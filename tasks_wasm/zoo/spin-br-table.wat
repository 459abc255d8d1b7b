;; Goes round in a loop by br_table alone, through every label.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (local $i i32)
    (loop $again
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (block $a
        (block $b
          (block $c
            (br_table $c $b $a $again (i32.and (local.get $i) (i32.const 3))))
          (br $again))
        (br $again))
      (br $again))
    (unreachable)))
