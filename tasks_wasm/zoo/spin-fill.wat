;; Fills a megabyte in one instruction, again and again: few instructions, much work.
(module
  (memory (export "memory") 16)
  (func (export "run") (result i32)
    (loop $again
      (memory.fill (i32.const 0) (i32.const 7) (i32.const 1048576))
      (br $again))
    (unreachable)))
