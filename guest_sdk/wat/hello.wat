;; Greets its input: all of profile core v1 that a task needs, by hand.
(module
  ;; What is imported is what is asked for; `executor:task@1` is there for every task.
  (import "executor:task@1" "input_len" (func $input_len (result i32)))
  (import "executor:task@1" "input_read"
    (func $input_read (param $dst i32) (param $off i32) (param $len i32) (result i32)))
  (import "executor:task@1" "output_write" (func $output_write (param $ptr i32) (param $len i32)))
  (import "executor:task@1" "fail"
    (func $fail (param $kind i32) (param $ptr i32) (param $len i32) (param $retry_after_ms i64)))

  ;; One page, 64 KiB: the texts at its beginning, the input from $INPUT to its end.
  (memory (export "memory") 1)
  (global $INPUT i32 (i32.const 1024))
  (data (i32.const 0) "hello, ")
  (data (i32.const 16) "the input is larger than 63 KiB")

  ;; 0 = the output is the result.
  (func $run (export "run") (result i32)
    (local $len i32)
    (local.set $len (call $input_len))
    ;; The host checks every range and ends a task that gives a wrong one; say it better ourselves.
    (if (i32.gt_u (local.get $len) (i32.const 64512))
      (then
        (call $fail (i32.const 2) (i32.const 16) (i32.const 31) (i64.const -1))
        (return (i32.const 0))))
    (drop (call $input_read (global.get $INPUT) (i32.const 0) (local.get $len)))
    ;; Output is appended, call by call.
    (call $output_write (i32.const 0) (i32.const 7))
    (call $output_write (global.get $INPUT) (local.get $len))
    (i32.const 0)))
