//! The same task as `wordcount`, word for word the same output.
const std = @import("std");
const task = @import("executor_task");

comptime {
    task.exportTask(wordCount);
}

const slots = 8192;
const distinct_max = slots / 4 * 3; // fuller tables probe too long
var table: [slots]?[]const u8 = @splat(null);

/// The word's slot: its own, or the free one where it belongs.
fn find(word: []const u8) *?[]const u8 {
    var slot = std.hash.Fnv1a_32.hash(word) % slots;
    while (table[slot]) |other| : (slot = (slot + 1) % slots) {
        if (std.mem.eql(u8, other, word)) break;
    }
    return &table[slot];
}

fn wordCount(in: []const u8, out: *std.ArrayList(u8)) anyerror!void {
    var words: u32 = 0;
    var distinct: u32 = 0;
    var capped = false;
    var rest = std.mem.tokenizeAny(u8, in, " \t\n\x0b\x0c\r");
    while (rest.next()) |word| {
        words += 1;
        const slot = find(word);
        if (slot.* != null) continue;
        if (distinct == distinct_max) {
            capped = true; // still counted as a word; the output says that there are more
            continue;
        }
        slot.* = word;
        distinct += 1;
    }
    task.log.info("counted {d} words, {d} distinct", .{ words, distinct });
    const tail = if (capped) ",\"capped\":true" else "";
    try out.print(task.gpa, "{{\"words\":{d},\"distinct\":{d}{s}}}", .{ words, distinct, tail });
}
