;; Makes objects for a garbage collector.
(module
  (memory (export "memory") 1)
  (type $pair (struct (field i32)))
  (func (export "run") (result i32)
    (struct.get $pair 0 (struct.new $pair (i32.const 0)))))
