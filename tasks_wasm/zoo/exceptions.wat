;; Throws an exception through the host.
(module
  (memory (export "memory") 1)
  (tag $oops)
  (func (export "run") (result i32)
    (throw $oops)))
