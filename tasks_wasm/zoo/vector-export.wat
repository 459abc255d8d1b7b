;; Exports a function with a v128 in its type, on which the engine's C interface aborts.
(module
  (memory (export "memory") 1)
  (func (export "vector") (param v128) (result v128)
    (local.get 0))
  (func (export "run") (result i32)
    (i32.const 0)))
