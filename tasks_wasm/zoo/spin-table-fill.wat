;; Fills a table in one instruction, again and again.
(module
  (memory (export "memory") 1)
  (table $t 10000 funcref)
  (func (export "run") (result i32)
    (loop $again
      (table.fill $t (i32.const 0) (ref.null func) (i32.const 10000))
      (br $again))
    (unreachable)))
