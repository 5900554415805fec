//! The text of `/proc/PID/task/TID/stack` to kernel functions.

use crate::frame::{Frame, Language};

/// Frames taken from one text at most: what the kernel prints ends at 64.
const MAX_FRAMES: usize = 128;

const KERNEL: &str = "[kernel]";

/// The frames of a text such as `[<0>] futex_wait+0x14a/0x240`, innermost first.
pub fn frames(text: &str) -> Vec<Frame> {
    text.lines().filter_map(stack_line).take(MAX_FRAMES).collect()
}

fn stack_line(line: &str) -> Option<Frame> {
    let (address, rest) = line.trim().strip_prefix("[<")?.split_once(">] ")?;
    let (place, module) = rest.split_once(' ').unwrap_or((rest, KERNEL));
    let (function, _) = place.split_once("+0x")?;
    // Kernels since 4.19 print 0 in place of the address.
    let address = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0);
    Some(Frame {
        function: Some(function.into()),
        file: None,
        line: None,
        module: Some(module.into()),
        language: Language::Kernel,
        inlined: false,
        address,
        module_offset: None,
    })
}

#[cfg(test)]
mod tests {
    use super::frames;
    use crate::frame::Language;

    /// The text of a blocked thread, with the forms that kernels have used.
    #[test]
    fn text_of_a_blocked_thread() {
        let text = "\
[<0>] hrtimer_nanosleep+0xa9/0x150
[<0>] nf_hook+0x1/0x40 [nf_tables]
[<ffffffff810a5c31>] do_syscall_64+0x54/0x110
[<ffffffffffffffff>] 0xffffffffffffffff

";
        let frames = frames(text);
        let shown: Vec<_> = frames
            .iter()
            .map(|frame| (frame.function.as_deref(), frame.module.as_deref(), frame.address))
            .collect();
        assert_eq!(
            shown,
            [
                (Some("hrtimer_nanosleep"), Some("[kernel]"), None),
                (Some("nf_hook"), Some("[nf_tables]"), None),
                (Some("do_syscall_64"), Some("[kernel]"), Some(0xffff_ffff_810a_5c31)),
            ]
        );
        assert!(frames.iter().all(|frame| frame.language == Language::Kernel));
    }
}
