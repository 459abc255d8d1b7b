;; Traps two calls deep: the report names the functions, which the name section keeps.
(module
  (memory (export "memory") 1)
  (func $parse_header (result i32)
    (unreachable))
  (func $load_image (result i32)
    (call $parse_header))
  (func $run (export "run") (result i32)
    (call $load_image)))
