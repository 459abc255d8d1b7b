;; Logs 9,998 lines, then succeeds: lines past the cap are dropped and counted, never a failure.
;; One more would pass the cap on host calls, which is another test.
(module
  (import "executor:log@1" "log_write"
    (func $log_write (param $level i32) (param $ptr i32) (param $len i32)))
  (import "executor:task@1" "output_write" (func $output_write (param $ptr i32) (param $len i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "the same line again and again, as if nobody had to keep it")
  (data (i32.const 64) "flooded")
  (func $run (export "run") (result i32)
    (local $line i32)
    (loop $again
      (call $log_write (i32.const 1) (i32.const 0) (i32.const 58))
      (local.set $line (i32.add (local.get $line) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $line) (i32.const 9998))))
    (call $output_write (i32.const 64) (i32.const 7))
    (i32.const 0)))
