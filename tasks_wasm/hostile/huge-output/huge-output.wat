;; Writes 64 KiB of output after 64 KiB of output, for ever.
(module
  (import "executor:task@1" "output_write" (func $output_write (param $ptr i32) (param $len i32)))
  (memory (export "memory") 1)
  (func $run (export "run") (result i32)
    (loop $again
      (call $output_write (i32.const 0) (i32.const 65536))
      (br $again))
    (unreachable)))
