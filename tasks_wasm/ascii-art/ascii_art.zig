//! A binary PGM or PPM image (P5, P6, 8 bit) becomes text: one character a cell, brightness as ink.
const std = @import("std");
const task = @import("executor_task");

comptime {
    task.exportTask(asciiArt);
}

const columns_max = 64;
const side_max = 4096; // keeps every sum below 2^32
const ink = " .:-=+*#%@"; // dark to bright: made for a dark terminal

const Image = struct { width: u32, height: u32, channels: u32, pixels: []const u8 };

fn asciiArt(in: []const u8, out: *std.ArrayList(u8)) anyerror!void {
    const image = try parse(in);
    const columns = @min(image.width, columns_max);
    // A character is about twice as high as wide; the image keeps its proportions.
    const rows = @max(1, (image.height * columns + image.width) / (2 * image.width));
    try out.ensureTotalCapacity(task.gpa, rows * (columns + 1));
    for (0..rows) |row| {
        for (0..columns) |column| {
            const level = brightness(image, column, columns, row, rows);
            out.appendAssumeCapacity(ink[level * ink.len / 256]);
        }
        out.appendAssumeCapacity('\n');
    }
    task.log.info("{d} x {d} pixels became {d} x {d} characters", .{
        image.width, image.height, columns, rows,
    });
}

/// The mean brightness, 0 to 255, of the pixels under one character.
fn brightness(image: Image, column: usize, columns: usize, row: usize, rows: usize) usize {
    const left = column * image.width / columns;
    const right = @max(left + 1, (column + 1) * image.width / columns);
    const top = @min(row * image.height / rows, image.height - 1);
    const bottom = @max(top + 1, (row + 1) * image.height / rows);
    var sum: usize = 0;
    for (top..bottom) |y| {
        for (left..right) |x| sum += luma(image, (y * image.width + x) * image.channels);
    }
    return sum / ((bottom - top) * (right - left));
}

/// ITU-R BT.601 weights in 256ths.
fn luma(image: Image, at: usize) usize {
    const p = image.pixels[at..][0..image.channels];
    if (p.len == 1) return p[0];
    return (@as(usize, p[0]) * 77 + @as(usize, p[1]) * 150 + @as(usize, p[2]) * 29) >> 8;
}

fn parse(in: []const u8) task.Settled!Image {
    if (in.len < 2 or in[0] != 'P' or (in[1] != '5' and in[1] != '6'))
        return task.fail("not a binary PGM or PPM image: it must begin with P5 or P6");
    var rest = in[2..];
    const width = try number(&rest, "width");
    const height = try number(&rest, "height");
    const depth = try number(&rest, "maximum value");
    if (width == 0 or height == 0 or width > side_max or height > side_max)
        return task.failf("a side must be 1 to {d} pixels, this is {d} x {d}", .{
            side_max, width, height,
        });
    if (depth != 255)
        return task.failf("the maximum value must be 255, this is {d}", .{depth});
    const channels: u32 = if (in[1] == '6') 3 else 1;
    const size = width * height * channels;
    // Exactly one white space byte parts the header from the pixels.
    const pixels = if (rest.len > 0) rest[1..] else rest;
    if (pixels.len < size)
        return task.failf("{d} bytes of pixels are missing of {d}", .{ size - pixels.len, size });
    return .{ .width = width, .height = height, .channels = channels, .pixels = pixels[0..size] };
}

/// The next number of the header; white space and comments in front of it are skipped.
fn number(rest: *[]const u8, what: []const u8) task.Settled!u32 {
    while (rest.len > 0 and (std.ascii.isWhitespace(rest.*[0]) or rest.*[0] == '#')) {
        const comment = rest.*[0] == '#';
        const end = std.mem.findScalar(u8, rest.*, '\n') orelse rest.len - 1;
        rest.* = rest.*[if (comment) end + 1 else 1..];
    }
    var digits: usize = 0;
    while (digits < rest.len and std.ascii.isDigit(rest.*[digits])) digits += 1;
    defer rest.* = rest.*[digits..];
    return std.fmt.parseInt(u32, rest.*[0..digits], 10) catch
        return task.failf("the header has no {s}", .{what});
}
