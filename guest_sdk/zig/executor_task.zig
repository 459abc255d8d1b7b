//! Write a task in Zig 0.17: profile core v1 (ABI 1), freestanding.
//!
//!     const task = @import("executor_task");
//!     comptime {
//!         task.exportTask(wordCount);
//!     }
//!     fn wordCount(in: []const u8, out: *std.ArrayList(u8)) anyerror!void { ... }
//!
//! A function you call becomes an import, and an import is a request for its capability; what
//! you do not call is not in the module. An error you do not handle settles the attempt:
//! `error.Unavailable` and `error.Deadline` ask for another, every other one is permanent.

const std = @import("std");

/// Memory for the attempt; freeing is allowed and rarely worth it.
pub const gpa: std.mem.Allocator = .{ .ptr = undefined, .vtable = &heap.vtable };

/// The host's functions, one symbol space: names are unique without their module.
const host = struct {
    extern "executor:task@1" fn input_len() i32;
    extern "executor:task@1" fn input_read(target: [*]u8, offset: i32, length: i32) i32;
    extern "executor:task@1" fn output_write(source: [*]const u8, length: i32) void;
    extern "executor:task@1" fn fail(
        kind: i32,
        message: [*]const u8,
        length: i32,
        retry_after_ms: i64,
    ) void;
    extern "executor:task@1" fn take(target: [*]u8, length: i32) i32;
    extern "executor:log@1" fn log_write(level: i32, line: [*]const u8, length: i32) void;
    extern "executor:clock@1" fn clock_now_ns() i64;
    extern "executor:random@1" fn random_fill(target: [*]u8, length: i32) void;
    extern "executor:kv@1" fn kv_get(
        key: [*]const u8,
        key_length: i32,
        buffer: [*]u8,
        capacity: i32,
    ) i64;
    extern "executor:kv@1" fn kv_put(
        key: [*]const u8,
        key_length: i32,
        value: [*]const u8,
        length: i32,
    ) i64;
    extern "executor:kv@1" fn kv_delete(key: [*]const u8, key_length: i32) i64;
};

/// Static memory first, then new pages: growing makes a small attempt half as long again.
const heap = struct {
    const Alignment = std.mem.Alignment;
    const vtable: std.mem.Allocator.VTable = .{
        .alloc = alloc,
        .resize = resize,
        .remap = remap,
        .free = free,
    };
    var block: [32 * 1024]u8 = undefined;
    var fixed: std.heap.FixedBufferAllocator = .init(&block);
    const first = fixed.allocator(); // its sums wrap, so only lengths that could fit go there
    const pages = std.heap.wasm_allocator;

    fn alloc(_: *anyopaque, length: usize, alignment: Alignment, caller: usize) ?[*]u8 {
        const found = if (length > block.len) null else first.rawAlloc(length, alignment, caller);
        return found orelse pages.rawAlloc(length, alignment, caller);
    }
    fn resize(_: *anyopaque, old: []u8, alignment: Alignment, length: usize, caller: usize) bool {
        if (!fixed.ownsPtr(old.ptr)) return pages.rawResize(old, alignment, length, caller);
        return length <= block.len and first.rawResize(old, alignment, length, caller);
    }
    fn remap(_: *anyopaque, old: []u8, alignment: Alignment, length: usize, caller: usize) ?[*]u8 {
        return if (resize(undefined, old, alignment, length, caller)) old.ptr else null;
    }
    fn free(_: *anyopaque, old: []u8, alignment: Alignment, caller: usize) void {
        const owner = if (fixed.ownsPtr(old.ptr)) first else pages;
        owner.rawFree(old, alignment, caller);
    }
};

const line_max = 4096; // the host's cap on a log line
const error_max = 512; // the host's cap on an error's text
const kind_retry = 1;
const kind_fail = 2;

/// What a capability answers when it is not a value; `errorText` says more.
pub const Error = error{ Denied, BadArgument, Unavailable, TooLarge, Deadline, Unknown };

/// What `retry`, `fail` and `failf` return: the attempt is settled, pass it on.
pub const Settled = error{Settled};

var settled = false; // the first failure is the attempt's failure
var error_bytes: [error_max]u8 = undefined;
var error_size: usize = 0;

/// The host's text of the last `Error`; empty if there was none.
pub fn errorText() []const u8 {
    return error_bytes[0..error_size];
}

/// Where the host may look: Zig's empty slices may point anywhere, and the host checks even those.
fn address(slice: []const u8) [*]const u8 {
    return if (slice.len == 0) &error_bytes else slice.ptr;
}

fn settle(kind: i32, message: []const u8, after_ms: i64) Settled {
    if (!settled) host.fail(kind, address(message), @intCast(message.len), after_ms);
    settled = true;
    return error.Settled;
}

/// Ends the attempt and asks for another: `return task.retry("not loaded yet", 500);`
pub fn retry(message: []const u8, after_ms: u32) Settled {
    return settle(kind_retry, message, after_ms);
}

/// Ends the attempt for good: the same input would end the same way.
pub fn fail(message: []const u8) Settled {
    return settle(kind_fail, message, -1);
}

/// `fail` with a formatted message, cut at 4 KiB.
pub fn failf(comptime format: []const u8, arguments: anytype) Settled {
    var buffer: [line_max]u8 = undefined;
    return fail(print(&buffer, format, arguments));
}

/// Formats what fits; a line that is too long is cut, not lost.
fn print(buffer: []u8, comptime format: []const u8, arguments: anytype) []const u8 {
    var writer: std.Io.Writer = .fixed(buffer);
    writer.print(format, arguments) catch {};
    return writer.buffered();
}

/// Log lines; the host drops and counts what exceeds its caps.
pub const log = struct {
    pub fn debug(comptime format: []const u8, arguments: anytype) void {
        write(0, format, arguments);
    }
    pub fn info(comptime format: []const u8, arguments: anytype) void {
        write(1, format, arguments);
    }
    pub fn warn(comptime format: []const u8, arguments: anytype) void {
        write(2, format, arguments);
    }
    pub fn err(comptime format: []const u8, arguments: anytype) void {
        write(3, format, arguments);
    }
    fn write(level: i32, comptime format: []const u8, arguments: anytype) void {
        var buffer: [line_max]u8 = undefined;
        const line = print(&buffer, format, arguments);
        host.log_write(level, address(line), @intCast(line.len));
    }
};

pub const clock = struct {
    /// Nanoseconds since 1970.
    pub fn nowNs() i64 {
        return host.clock_now_ns();
    }
};

pub const random = struct {
    pub fn fill(target: []u8) void {
        if (target.len > 0) host.random_fill(target.ptr, @intCast(target.len));
    }
};

/// The key-value store of the grant.
pub const kv = struct {
    const first = 512; // most values arrive in one crossing; a larger one is taken

    /// The value, or null for an absent key; owned by the caller.
    pub fn get(key: []const u8) (Error || error{OutOfMemory})!?[]u8 {
        var buffer: [first]u8 = undefined;
        const answer = host.kv_get(address(key), @intCast(key.len), &buffer, first);
        const size = try check(answer) orelse return null;
        const value = try gpa.alloc(u8, size);
        if (size > first) {
            _ = host.take(value.ptr, @intCast(size));
        } else {
            @memcpy(value, buffer[0..size]);
        }
        return value;
    }

    pub fn put(key: []const u8, value: []const u8) Error!void {
        const size: i32 = @intCast(value.len);
        _ = try check(host.kv_put(address(key), @intCast(key.len), address(value), size));
    }

    /// Whether there was something to delete.
    pub fn delete(key: []const u8) Error!bool {
        return try check(host.kv_delete(address(key), @intCast(key.len))) != null;
    }
};

/// A size, null for "not found", or an error whose text is fetched before the next call.
fn check(answer: i64) Error!?usize {
    if (answer >= 0) return @intCast(answer);
    error_size = @intCast(host.take(&error_bytes, error_max));
    return switch (answer) {
        -1 => null,
        -2 => error.Denied,
        -3 => error.BadArgument,
        -4 => error.Unavailable,
        -5 => error.TooLarge,
        -6 => error.Deadline,
        else => error.Unknown,
    };
}

fn loadInput() error{OutOfMemory}![]u8 {
    const input = try gpa.alloc(u8, @intCast(host.input_len()));
    if (input.len > 0) _ = host.input_read(input.ptr, 0, @intCast(input.len));
    return input;
}

fn settleUnhandled(failure: anyerror) void {
    if (settled) return;
    const kind: i32 = switch (failure) {
        error.Unavailable, error.Deadline => kind_retry,
        else => kind_fail,
    };
    var buffer: [line_max]u8 = undefined;
    const message = print(&buffer, "{s} {s}", .{ @errorName(failure), errorText() });
    settle(kind, std.mem.trimEnd(u8, message, " "), -1) catch {};
}

/// Exports `run` for `fn (in: []const u8, out: *std.ArrayList(u8)) anyerror!void`; grow `out`
/// with `task.gpa`. Nothing of it is seen if the task fails.
pub fn exportTask(comptime function: fn ([]const u8, *std.ArrayList(u8)) anyerror!void) void {
    const entry = struct {
        fn run() callconv(.c) i32 {
            attempt() catch |failure| settleUnhandled(failure);
            return 0; // after `fail` the host reads the failure, not this
        }
        fn attempt() anyerror!void {
            var out: std.ArrayList(u8) = .empty;
            try function(try loadInput(), &out);
            if (!settled) host.output_write(address(out.items), @intCast(out.items.len));
        }
    };
    @export(&entry.run, .{ .name = "run" });
}

/// The build's root file installs this: a panic's message is in the dead letter.
pub fn panic(message: []const u8, _: ?usize) noreturn {
    _ = settle(kind_fail, message, -1) catch {};
    @trap();
}
