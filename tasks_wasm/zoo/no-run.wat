;; Exports no `run`.
(module
  (memory (export "memory") 1))
