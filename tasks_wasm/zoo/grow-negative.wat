;; Grows by -1 and by 65536 pages, where a sum of 32 bits would wrap.
(module
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (if (i32.ne (memory.grow (i32.const -1)) (i32.const -1)) (then (unreachable)))
    (if (i32.ne (memory.grow (i32.const 65536)) (i32.const -1)) (then (unreachable)))
    (if (i32.ne (memory.size) (i32.const 1)) (then (unreachable)))
    (i32.const 0)))
