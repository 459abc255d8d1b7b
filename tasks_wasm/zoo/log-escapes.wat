;; Logs what would clear a terminal, set its title and forge a second line.
(module
  (import "executor:log@1" "log_write" (func $log_write (param i32 i32 i32)))
  (memory (export "memory") 1)
  (func (export "run") (result i32)
    (local $n i32)
    (loop $again
      (call $log_write (i32.const 1) (i32.const 0) (i32.const 47))
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $n) (i32.const 3))))
    (i32.const 0))
  (data (i32.const 0) "\1b[2J\1b]0;owned\07ok\r\n2026-01-01 ERROR forged line\1b[31m"))
