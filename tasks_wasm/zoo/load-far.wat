;; Loads from 8 GiB behind the beginning of memory.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (i32.load offset=4294967295 (i32.const -1))))
