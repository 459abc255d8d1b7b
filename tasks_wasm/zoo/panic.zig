//! Panics with a message of 100,000 bytes.
const std = @import("std");
const task = @import("executor_task");

comptime {
    task.exportTask(panics);
}

const message: [100_000]u8 = @splat('A');

fn panics(in: []const u8, out: *std.ArrayList(u8)) anyerror!void {
    _ = in;
    _ = out;
    @panic(&message);
}
