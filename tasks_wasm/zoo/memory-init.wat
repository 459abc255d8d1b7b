;; Initialises memory beyond the end of its data.
(module
  (memory (export "memory") 1)
  (data $d "four")
  (func (export "run") (result i32)
    (memory.init $d (i32.const 0) (i32.const 1) (i32.const 4))
    (i32.const 0)))
