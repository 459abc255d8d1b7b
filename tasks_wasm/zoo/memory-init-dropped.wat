;; Initialises memory from data that it dropped.
(module
  (memory (export "memory") 1)
  (data $d "four")
  (func (export "run") (result i32)
    (data.drop $d)
    (memory.init $d (i32.const 0) (i32.const 0) (i32.const 4))
    (i32.const 0)))
