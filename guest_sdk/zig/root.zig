//! The root of every Zig task: the task's own file needs no panic handler.
const std = @import("std");
const task = @import("executor_task");

pub const panic = std.debug.FullPanic(task.panic);

comptime {
    _ = @import("task_source");
}
