//! The texts of `/proc` with damage: names in them are the target's choice, and it may be gone in the middle of one.

use super::cgroup::{container_id, path};
use super::maps;
use super::sockets::{by_inode, internet, unix};
use super::stack::read_stack;
use super::target::{Stat, field};
use crate::hostile::{HostileMemory, Random, STYLES, damage, rounds};
use profiler_ebpf::limits::{PAGE_BYTES, STACK_BYTES};
use profiler_ebpf::record::{CaptureHead, Registers};

const MAPS: &str = "\
55d0c5a01000-55d0c5cb2000 r-xp 00001000 fe:00 131077                     /usr/bin/python3.11
7f1e64000000-7f1e64002000 r-xp 00003000 103:1f 77                        /srv/my app/lib one.so (deleted)
7ffd1b9c8000-7ffd1b9ca000 r-xp 00000000 00:00 0                          [vdso]
";

const STAT: &str = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";

const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 0000000000000000FFFF00000100007F:C350 0100007F:1F91 01 0:0 00:0 0     0        0 12 1
";

const UNIX: &str = "Num RefCount Protocol Flags Type St Inode Path
0: 00000002 00000000 00010000 0001 01 77 /run/x.sock
";

const CGROUP: &str =
    "12:cpu:/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
0::/system.slice/app.service
";

/// A text with damage, as it would come out of the file.
fn damaged(random: &mut Random, text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    damage(random, &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Every text is read to its end, and says no more than it has.
#[test]
fn texts() {
    rounds(2000, |random| {
        let text = damaged(random, MAPS);
        let regions = maps::parse(&text);
        assert!(regions.len() <= text.lines().count());
        let text = damaged(random, STAT);
        if let Some(stat) = Stat::parse(&text) {
            assert!(text.contains(&stat.name));
        }
        let text = damaged(random, TCP);
        for inode in ["11", "12", ""] {
            by_inode(&text, inode);
        }
        assert!(internet(&text).count() <= text.lines().count());
        unix(&damaged(random, UNIX), "77");
        let text = damaged(random, CGROUP);
        assert!(path(&text).is_none_or(|path| text.contains(&path)));
        assert!(container_id(&text).is_none_or(|id| text.contains(&id)));
        let status = damaged(random, "Name:\tx\nTgid:\t77\nNSpid:\t77\t1\n");
        field(&status, "Tgid:");
    });
}

/// However far a thread's registers say that its stack goes.
#[test]
fn stacks() {
    rounds(300, |random| {
        let style = *random.pick(&STYLES);
        let memory = HostileMemory::new(style, random);
        let sp = if random.once_in(3) { random.odd_number() } else { memory.place(random) };
        let top = |random: &mut Random| match random.below(3) {
            0 => 0,
            1 => random.odd_number(),
            _ => sp.wrapping_add(random.next() % (1 << 20)),
        };
        let head = CaptureHead {
            registers: Registers { sp, ..Registers::default() },
            stack_top: top(random),
            fsbase: top(random),
            ..CaptureHead::default()
        };
        let stack = read_stack(&memory, &head);
        assert!(stack.len() <= STACK_BYTES + PAGE_BYTES, "{} bytes", stack.len());
        let (reads, _) = memory.counts();
        assert!(reads <= 3 + (STACK_BYTES / PAGE_BYTES) as u64, "{reads} reads");
    });
}
