;; Calls a function by a typed reference.
(module
  (memory (export "memory") 1)
  (type $task (func (result i32)))
  (elem declare func $f)
  (func $f (result i32)
    (i32.const 0))
  (func (export "run") (result i32)
    (call_ref $task (ref.func $f))))
