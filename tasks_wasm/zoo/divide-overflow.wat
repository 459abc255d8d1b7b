;; Divides the smallest number by -1.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (i32.div_s (i32.const -2147483648) (i32.sub (i32.load (i32.const 0)) (i32.const 1)))))
