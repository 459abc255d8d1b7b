/* executor_task.h - write a task in C: one header, no libc, profile core v1 (ABI 1).
 *
 *   #include "executor_task.h"
 *   TASK(in) {
 *     outf("%u bytes", (unsigned)in.len);
 *     return OK;
 *   }
 *
 * A function you call becomes an import, and an import is a request for its capability; what
 * you do not call is not in the module. Memory comes from a bump allocator and is never given
 * back: an instance lives for one attempt. GNU C (clang), for `return` inside an expression.
 */
#ifndef EXECUTOR_TASK_H
#define EXECUTOR_TASK_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ the host's functions */

#define TASK_IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

TASK_IMPORT("executor:task@1", "input_len") int32_t task_host_input_len(void);
TASK_IMPORT("executor:task@1", "input_read")
int32_t task_host_input_read(void *target, int32_t offset, int32_t length);
TASK_IMPORT("executor:task@1", "output_write")
void task_host_output_write(const void *source, int32_t length);
TASK_IMPORT("executor:task@1", "fail")
void task_host_fail(int32_t kind, const void *message, int32_t length, int64_t retry_after_ms);
TASK_IMPORT("executor:task@1", "take") int32_t task_host_take(void *target, int32_t length);
TASK_IMPORT("executor:log@1", "log_write")
void task_host_log_write(int32_t level, const void *line, int32_t length);
TASK_IMPORT("executor:clock@1", "clock_now_ns") int64_t task_host_clock_now_ns(void);
TASK_IMPORT("executor:random@1", "random_fill")
void task_host_random_fill(void *target, int32_t length);
TASK_IMPORT("executor:kv@1", "kv_get")
int64_t task_host_kv_get(const void *key, int32_t key_length, void *buffer, int32_t capacity);
TASK_IMPORT("executor:kv@1", "kv_put")
int64_t task_host_kv_put(const void *key, int32_t key_length, const void *value, int32_t length);
TASK_IMPORT("executor:kv@1", "kv_delete")
int64_t task_host_kv_delete(const void *key, int32_t key_length);

/* ---------------------------------------------------------------------------- vocabulary */

/* Bytes somebody else owns. `ptr` is NULL for "nothing", which is not the same as empty. */
typedef struct {
  const char *ptr;
  size_t len;
} bytes;

enum { OK = 0, SETTLED = 1 }; /* what a task returns; SETTLED comes from fail, retry, kv_* */

enum {
  E_NOT_FOUND = -1,
  E_DENIED = -2,
  E_BAD_ARGUMENT = -3,
  E_UNAVAILABLE = -4,
  E_TOO_LARGE = -5,
  E_DEADLINE = -6
};

enum { TASK_KIND_RETRY = 1, TASK_KIND_FAIL = 2 };
enum { TASK_PAGE = 65536, TASK_LINE_MAX = 4096, TASK_OUTPUT_BUFFER = 4096, TASK_ERROR_MAX = 512 };

#define TASK_API static __attribute__((unused))

TASK_API bytes task_same(bytes value) { return value; }
TASK_API bytes task_text(const char *text) {
  size_t length = 0;
  while (text[length]) length++;
  return (bytes){text, length};
}

/* B("text") or B(some_bytes): wherever this header takes bytes, it takes either. */
#define B(value) \
  _Generic((value), bytes: task_same, char *: task_text, const char *: task_text)(value)
/* Two arguments for "%.*s". */
#define SHOW(value) (int)(value).len, (value).ptr

/* ------------------------------------------------------------------- failing and retrying */

static bool task_settled; /* the first failure is the attempt's failure */

TASK_API int task_settle(int kind, bytes message, int64_t after_ms) {
  if (!task_settled) task_host_fail(kind, message.ptr, (int32_t)message.len, after_ms);
  task_settled = true;
  return SETTLED;
}

/* Both leave the function they stand in, which must return int; its caller passes SETTLED on. */
#define fail(message) return task_settle(TASK_KIND_FAIL, B(message), -1)
#define retry(message, after_ms) return task_settle(TASK_KIND_RETRY, B(message), (after_ms))

/* For a place that cannot return: the message is in the dead letter beside the trap. */
TASK_API __attribute__((noreturn)) void die(const char *message) {
  task_settle(TASK_KIND_FAIL, task_text(message), -1);
  __builtin_trap();
}

/* -------------------------------------------------------------------------------- memory */

extern unsigned char __heap_base;
static uintptr_t task_heap_next;

/* `size` bytes aligned to 16, for the rest of the attempt; a refused grow ends the task. */
TASK_API void *task_alloc(size_t size) {
  uintptr_t first = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15;
  uintptr_t start = task_heap_next ? task_heap_next : first;
  uint64_t end = ((uint64_t)start + size + 15) & ~(uint64_t)15;
  uint64_t limit = (uint64_t)__builtin_wasm_memory_size(0) * TASK_PAGE;
  if (end > limit) {
    uint64_t pages = (end - limit + TASK_PAGE - 1) / TASK_PAGE;
    if (end > UINT32_MAX || __builtin_wasm_memory_grow(0, (size_t)pages) == (size_t)-1)
      die("out of memory");
  }
  task_heap_next = (uintptr_t)end;
  return (void *)start;
}

TASK_API void task_copy(char *target, const char *source, size_t length) {
  for (size_t i = 0; i < length; i++) target[i] = source[i];
}

/* -------------------------------------------------------------------------------- writing */

typedef struct {
  char *buffer;
  size_t size, used;
  bool output; /* full: write it out; else cut the text here */
} task_sink;

static char task_output_buffer[TASK_OUTPUT_BUFFER];
static task_sink task_output = {task_output_buffer, TASK_OUTPUT_BUFFER, 0, true};

TASK_API void task_flush(void) {
  if (task_output.used) task_host_output_write(task_output.buffer, (int32_t)task_output.used);
  task_output.used = 0;
}

TASK_API void task_put(task_sink *sink, const char *source, size_t length) {
  if (sink->output && length >= sink->size) { /* large pieces pass by the buffer */
    task_flush();
    task_host_output_write(source, (int32_t)length);
    return;
  }
  if (sink->output && length > sink->size - sink->used) task_flush();
  size_t room = sink->size - sink->used;
  if (length > room) length = room;
  task_copy(sink->buffer + sink->used, source, length);
  sink->used += length;
}

TASK_API void task_put_number(task_sink *sink, uint64_t value, bool negative, unsigned base) {
  char digits[24];
  size_t at = sizeof digits;
  do digits[--at] = "0123456789abcdef"[value % base];
  while (value /= base);
  if (negative) digits[--at] = '-';
  task_put(sink, digits + at, sizeof digits - at);
}

/* printf without widths or floats: %s %.*s %c %d %i %u %x, with l, ll or z, and %%. */
TASK_API void task_format(task_sink *sink, const char *format, va_list arguments) {
  for (const char *at = format; *at; at++) {
    const char *start = at;
    while (*at && *at != '%') at++;
    task_put(sink, start, (size_t)(at - start));
    if (!*at || !*++at) return;
    size_t precision = SIZE_MAX;
    if (at[0] == '.' && at[1] == '*') {
      precision = (size_t)va_arg(arguments, int);
      at += 2;
    }
    bool wide = at[0] == 'l' && at[1] == 'l';
    while (*at == 'l' || *at == 'z') at++;
    if (*at == 's') {
      const char *text = va_arg(arguments, const char *);
      size_t length = 0;
      while (length < precision && (precision != SIZE_MAX || text[length])) length++;
      task_put(sink, text, length);
    } else if (*at == 'c') {
      char one = (char)va_arg(arguments, int);
      task_put(sink, &one, 1);
    } else if (*at == 'd' || *at == 'i') {
      int64_t value = wide ? va_arg(arguments, long long) : va_arg(arguments, int);
      task_put_number(sink, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, value < 0, 10);
    } else if (*at == 'u' || *at == 'x') {
      uint64_t value = wide ? va_arg(arguments, unsigned long long) : va_arg(arguments, unsigned);
      task_put_number(sink, value, false, *at == 'u' ? 10 : 16);
    } else {
      task_put(sink, at, *at ? 1 : 0);
      if (!*at) return;
    }
  }
}

#define TASK_PRINTF(place) __attribute__((unused, format(printf, place, place + 1)))

/* Appends to the task's output; nothing of it is seen if the task fails. */
#define out(value) task_out(B(value))
TASK_API void task_out(bytes value) { task_put(&task_output, value.ptr, value.len); }
static TASK_PRINTF(1) void outf(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  task_format(&task_output, format, arguments);
  va_end(arguments);
}

/* Text in memory of its own, at most TASK_LINE_MAX bytes: for keys and messages. */
static TASK_PRINTF(1) bytes textf(const char *format, ...) {
  task_sink line = {task_alloc(TASK_LINE_MAX), TASK_LINE_MAX, 0, false};
  va_list arguments;
  va_start(arguments, format);
  task_format(&line, format, arguments);
  va_end(arguments);
  task_heap_next = (uintptr_t)line.buffer + ((line.used + 15) & ~(size_t)15);
  return (bytes){line.buffer, line.used};
}

/* One log line, cut at TASK_LINE_MAX bytes, the host's own cap. */
#define log_debug(...) task_log(0, __VA_ARGS__)
#define log_info(...) task_log(1, __VA_ARGS__)
#define log_warn(...) task_log(2, __VA_ARGS__)
#define log_error(...) task_log(3, __VA_ARGS__)
static TASK_PRINTF(2) void task_log(int32_t level, const char *format, ...) {
  static char buffer[TASK_LINE_MAX];
  task_sink line = {buffer, TASK_LINE_MAX, 0, false};
  va_list arguments;
  va_start(arguments, format);
  task_format(&line, format, arguments);
  va_end(arguments);
  task_host_log_write(level, buffer, (int32_t)line.used);
}

/* --------------------------------------------------------------------------- capabilities */

/* Nanoseconds since 1970. */
TASK_API int64_t clock_now_ns(void) { return task_host_clock_now_ns(); }
TASK_API void random_fill(void *target, size_t length) {
  task_host_random_fill(target, (int32_t)length);
}

/* The text of the last error; ask before the next call. */
TASK_API bytes error_text(void) {
  char *text = task_alloc(TASK_ERROR_MAX);
  return (bytes){text, (size_t)task_host_take(text, TASK_ERROR_MAX)};
}

/* The error nobody handled: -4 and -6 may be gone next time, the others will not. */
TASK_API int task_unhandled(const char *function, bytes key, int64_t error) {
  bytes text = error_text();
  bool later = error == E_UNAVAILABLE || error == E_DEADLINE;
  bytes message = textf("%s `%.*s`: error %d %.*s", function, SHOW(key), (int)error, SHOW(text));
  return task_settle(later ? TASK_KIND_RETRY : TASK_KIND_FAIL, message, -1);
}

/* kv_try_*: the answer as a number, 0 or more (a size) or E_*. Usable anywhere. */
TASK_API int64_t kv_try_get_bytes(bytes key, bytes *value) {
  enum { FIRST = 512 }; /* most values arrive in one crossing; a larger one is taken */
  char *buffer = task_alloc(FIRST);
  int64_t size = task_host_kv_get(key.ptr, (int32_t)key.len, buffer, FIRST);
  task_heap_next = (uintptr_t)buffer; /* grown memory stays: allocate what came */
  *value = (bytes){NULL, 0};
  if (size < 0) return size;
  char *kept = task_alloc((size_t)size);
  if (size > FIRST) task_host_take(kept, (int32_t)size);
  *value = (bytes){kept, (size_t)size};
  return size;
}
#define kv_try_get(key, value) kv_try_get_bytes(B(key), (value))
#define kv_try_put(key, value) kv_try_put_bytes(B(key), B(value))
TASK_API int64_t kv_try_put_bytes(bytes key, bytes value) {
  return task_host_kv_put(key.ptr, (int32_t)key.len, value.ptr, (int32_t)value.len);
}
#define kv_try_delete(key) kv_try_delete_bytes(B(key))
TASK_API int64_t kv_try_delete_bytes(bytes key) {
  return task_host_kv_delete(key.ptr, (int32_t)key.len);
}

/* kv_*: an error settles the attempt and leaves the function, as `fail` and `retry` do.
 * kv_get gives bytes, with ptr NULL for an absent key; kv_delete gives whether it was there. */
#define TASK_OR_LEAVE(function, key, call)                                                \
  bytes task_key_ = B(key);                                                               \
  int64_t task_answer_ = (call);                                                          \
  if (task_answer_ < E_NOT_FOUND) return task_unhandled(function, task_key_, task_answer_)

#define kv_get(key)                                                                       \
  __extension__({                                                                         \
    bytes task_value_;                                                                    \
    TASK_OR_LEAVE("kv_get", key, kv_try_get_bytes(task_key_, &task_value_));              \
    task_value_;                                                                          \
  })
#define kv_put(key, value)                                                                \
  __extension__({ TASK_OR_LEAVE("kv_put", key, kv_try_put(task_key_, value)); })
#define kv_delete(key)                                                                    \
  __extension__({                                                                         \
    TASK_OR_LEAVE("kv_delete", key, kv_try_delete_bytes(task_key_));                      \
    task_answer_ >= 0;                                                                    \
  })

/* ---------------------------------------------------------------------------------- text */

TASK_API bool equal(bytes left, bytes right) {
  if (left.len != right.len) return false;
  for (size_t i = 0; i < left.len; i++)
    if (left.ptr[i] != right.ptr[i]) return false;
  return true;
}

TASK_API bool starts_with(bytes text, bytes prefix) {
  return text.len >= prefix.len && equal((bytes){text.ptr, prefix.len}, prefix);
}

TASK_API bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* while (split(&rest, ',', &piece)) ...: every piece, empty ones too; "" is one, NULL none. */
TASK_API bool split(bytes *rest, char separator, bytes *piece) {
  if (!rest->ptr) return false;
  size_t length = 0;
  while (length < rest->len && rest->ptr[length] != separator) length++;
  *piece = (bytes){rest->ptr, length};
  bool last = length == rest->len;
  *rest = last ? (bytes){NULL, 0} : (bytes){rest->ptr + length + 1, rest->len - length - 1};
  return true;
}

/* while (next_word(&rest, &word)) ...: what stands between ASCII white space, never empty. */
TASK_API bool next_word(bytes *rest, bytes *word) {
  while (rest->len && is_space(*rest->ptr)) rest->ptr++, rest->len--;
  size_t length = 0;
  while (length < rest->len && !is_space(rest->ptr[length])) length++;
  *word = (bytes){rest->ptr, length};
  rest->ptr += length;
  rest->len -= length;
  return length > 0;
}

TASK_API bool in_list(bytes list, char separator, bytes wanted) {
  bytes piece;
  while (split(&list, separator, &piece))
    if (equal(piece, wanted)) return true;
  return false;
}

/* ---------------------------------------------------------------------------------- entry */

TASK_API bytes task_load_input(void) {
  size_t length = (size_t)task_host_input_len();
  char *input = task_alloc(length);
  task_host_input_read(input, 0, (int32_t)length);
  return (bytes){input, length};
}

/* TASK(in) { ... return OK; }: `in` is the whole input. */
#define TASK(input)                                                                       \
  static int task_body(bytes input);                                                      \
  __attribute__((export_name("run"))) int32_t task_run(void) {                            \
    int status = task_body(task_load_input());                                            \
    if (task_settled) return 0; /* the host knows already */                              \
    task_flush();                                                                         \
    return status;                                                                        \
  }                                                                                       \
  static int task_body(__attribute__((unused)) bytes input)

#endif
