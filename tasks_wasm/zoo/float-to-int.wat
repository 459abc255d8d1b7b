;; Turns a float that is no number into an integer.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (i32.trunc_f64_s (f64.div (f64.load (i32.const 0)) (f64.load (i32.const 0))))))
