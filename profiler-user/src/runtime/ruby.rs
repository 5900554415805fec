//! Ruby's stacks to its GVL: whether a thread waits for it, and whether one may run with it.
//!
//! One thread of a Ractor runs at a time, the one that has the GVL; all others wait for it on a condition of their own
//! (thread_pthread.c). Its functions are local to libruby, and distributions strip their names. What a thread does
//! without the GVL is called by few functions, though, which extensions use and every build exports, and the only
//! condition that these wait for themselves is that of the GVL, which they take back before they return.

use super::{Attached, Found, Process, Runtime};
use crate::frame::{Frame, Language};
use crate::gap::Gap;
use crate::process::executables::{basename, is_libc};
use crate::process::maps::{Backing, Region};
use crate::process::target::WaitDescriptors;
use crate::turn::{Awaited, Lock};

/// As a report's `runtime.name` has it.
pub const NAME: &str = "ruby";

/// Ruby's row in the table of runtimes.
#[derive(Debug)]
pub struct RubyRow;

impl Runtime for RubyRow {
    fn name(&self) -> &'static str {
        "Ruby"
    }

    fn attach(&self, process: &Process<'_>) -> Result<Option<Found>, Gap> {
        let found =
            |version| Found { attached: Some(Box::new(Ruby)), ..Found::whole(NAME, version) };
        Ok(detect(process.regions).map(found))
    }

    fn without_its_own(&self, found: WaitDescriptors, regions: &[Region]) -> WaitDescriptors {
        without_its_own(found, regions)
    }

    fn collects(&self, frame: &Frame) -> bool {
        collects(frame)
    }

    fn awaited(&self, frames: &[Frame]) -> Option<Awaited> {
        waits_for_gvl(frames).then_some(Awaited::Gvl)
    }

    fn cannot_have(&self, lock: Lock, frames: &[Frame]) -> bool {
        lock == Lock::Gvl && !may_have_gvl(frames)
    }
}

/// A process that runs Ruby, whose frames are not read.
#[derive(Debug)]
pub struct Ruby;

impl Attached for Ruby {
    fn hidden_lock(&self) -> Option<Lock> {
        Some(Lock::Gvl)
    }
}

/// Where a thread waits for it, 2.7 to 3.4. Beginnings: compilers add suffixes.
const TAKES: [&str; 6] = [
    "gvl_acquire",
    "gvl_yield",
    "do_gvl_timer",
    "thread_sched_to_running",
    "thread_sched_wait_running_turn",
    "thread_sched_yield",
];

/// What gives the GVL back for as long as what it calls takes.
const GIVES_BACK: [&str; 14] = [
    "rb_nogvl",
    "rb_thread_call_without_gvl",
    "rb_thread_call_without_gvl2",
    "rb_thread_io_blocking_region",
    "rb_thread_fd_select",
    "rb_thread_wait_for_single_fd",
    "rb_wait_for_single_fd",
    "rb_thread_wait_fd",
    "rb_thread_fd_writable",
    "rb_io_wait",
    "rb_io_wait_readable",
    "rb_io_wait_writable",
    "rb_io_maybe_wait_readable",
    "rb_io_maybe_wait_writable",
];

/// What takes it: for a call back into Ruby, or once it has let others run for a while.
const TAKES_IN_CALLS: [&str; 4] = [
    "rb_thread_call_with_gvl",
    "rb_thread_schedule",
    "rb_thread_check_ints",
    "rb_threadptr_execute_interrupts",
];

/// What runs with it only.
const HAS: [&str; 2] = ["rb_thread_call_with_gvl", "rb_vm_exec"];

/// What calls into Ruby's code. Beginnings.
const ENTERS: [&str; 10] = [
    "rb_yield",
    "rb_funcall",
    "rb_call_super",
    "rb_block_call",
    "rb_iterate",
    "rb_vm_",
    "rb_ec_",
    "rb_threadptr_",
    "vm_",
    "ruby_",
];

/// What only passes on what those that it calls raise. Beginnings.
const PASSES: [&str; 4] = ["rb_ensure", "rb_rescue", "rb_protect", "rb_catch"];

/// So many frames without a name in a row are the virtual machine, where its functions are stripped of theirs (3.3).
const MACHINE: usize = 3;

/// Frames of a thread that runs Ruby, at least; those of Ruby's own, which keep time, have fewer.
const FEWEST: usize = 5;

/// Its collector, where local names are there. Beginnings, and other programs may have such names as well.
const COLLECTS: [&str; 6] =
    ["garbage_collect", "gc_start", "gc_continue", "gc_marks", "gc_sweep", "gc_rest"];

/// What lies between those and the wait itself.
const WITHIN: [&str; 4] =
    ["rb_ensure", "rb_native_cond_wait", "rb_native_cond_timedwait", "native_cond_timedwait"];

/// Where a thread of Ruby's waits for itself, from thread_sync.c and thread.c: without the GVL.
const SLEEPS: [&str; 6] = [
    "rb_native_cond_wait",
    "rb_native_cond_timedwait",
    "rb_mutex_sleep",
    "rb_thread_sleep",
    "rb_thread_wait_for",
    "native_sleep",
];

/// Frames without a name that lie between: the functions above, where the names of local ones are stripped.
const MAX_NAMELESS: usize = 5;

/// Whether a thread that sleeps on a futex waits there for the GVL.
pub fn waits_for_gvl(frames: &[Frame]) -> bool {
    let mut nameless = 0;
    for frame in frames.iter().skip_while(|frame| is_of_libc(frame)) {
        if !is_of_ruby(frame) {
            return false;
        }
        let Some(name) = frame.function.as_deref() else {
            nameless += 1;
            if nameless > MAX_NAMELESS {
                return false;
            }
            continue;
        };
        if TAKES.iter().any(|known| name.starts_with(known)) {
            return true;
        }
        if GIVES_BACK.contains(&name) || TAKES_IN_CALLS.contains(&name) {
            return true;
        }
        if !WITHIN.contains(&name) {
            return false;
        }
    }
    false
}

/// Whether a thread that does something else than sleep on a futex may have the GVL: Ruby has called it, and has not
/// given the GVL back for it.
pub fn may_have_gvl(frames: &[Frame]) -> bool {
    // On its way to sleep, just woken, or giving it back.
    let mut innermost = frames.iter().take_while(|frame| is_of_libc(frame));
    if innermost.any(|frame| is_named(frame, "pthread_cond_")) {
        return false;
    }
    let names = frames.iter().filter(|frame| is_of_ruby(frame));
    for name in names.clone().filter_map(|frame| frame.function.as_deref()) {
        if HAS.contains(&name) {
            return true;
        }
        let is_one_of = |known: &[&str]| known.iter().any(|known| name.starts_with(known));
        if GIVES_BACK.contains(&name) || is_one_of(&SLEEPS) || is_one_of(&TAKES) {
            return false;
        }
    }
    let is_told = |frame: &Frame| is_named(frame, "") && !is_named(frame, "rb_native_");
    names.clone().any(is_told) || names.count() >= FEWEST
}

/// The C function that Ruby's code has called: the outermost one with a name before Ruby's code.
pub fn called(frames: &[Frame]) -> Option<&Frame> {
    let (mut found, mut nameless) = (None, 0);
    for frame in frames.iter().filter(|frame| !is_of_libc(frame) && !is_of_kernel(frame)) {
        let name = frame.function.as_deref();
        let is_one_of = |known: &[&str]| {
            is_of_ruby(frame)
                && name.is_some_and(|name| known.iter().any(|it| name.starts_with(it)))
        };
        nameless = if name.is_none() && is_of_ruby(frame) { nameless + 1 } else { 0 };
        if nameless == MACHINE || is_one_of(&HAS) || is_one_of(&ENTERS) {
            break;
        }
        if name.is_some() && !is_one_of(&PASSES) {
            found = Some(frame);
        }
    }
    found
}

/// Whether it is a function of Ruby's collector.
pub fn collects(frame: &Frame) -> bool {
    let name = frame.function.as_deref().unwrap_or_default();
    is_of_ruby(frame) && COLLECTS.iter().any(|known| name.starts_with(known))
}

/// The version, where a file tells by its name that Ruby is mapped: `libruby-3.1.so.3.1.2`, `ruby3.1`.
pub fn detect(regions: &[Region]) -> Option<Option<String>> {
    let code = regions.iter().filter(|region| region.executable);
    let mut names = code.filter_map(|region| match &region.backing {
        Backing::File(path) => path.to_str().filter(|path| is_file_of_ruby(path)),
        Backing::Special(_) | Backing::Anonymous => None,
    });
    let first = names.next()?;
    let of_library = |name: &&str| basename(name).starts_with("lib");
    let name = Some(first).filter(of_library).or_else(|| names.find(of_library)).unwrap_or(first);
    Some(version(basename(name)))
}

/// What a loop of the program may wait on: from 3.3 on a thread of Ruby's own, which keeps time for the others, has an
/// epoll instance in every process.
pub fn without_its_own(found: WaitDescriptors, regions: &[Region]) -> WaitDescriptors {
    if found.instances != 1 {
        return found;
    }
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok());
    let keeps_time = detect(regions).flatten().is_some_and(|version| {
        let mut parts = version.split('.');
        (number(parts.next()), number(parts.next())) >= (Some(3), Some(3))
    });
    if keeps_time { WaitDescriptors { epoll: false, instances: 0, ..found } } else { found }
}

fn version(name: &str) -> Option<String> {
    let after = name.split_once(".so.").map(|(_, version)| version);
    let version = after.or_else(|| name.strip_prefix(NAME))?;
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let is_version =
        version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(is_of_number);
    is_version.then(|| version.to_owned())
}

fn is_file_of_ruby(path: &str) -> bool {
    let name = basename(path);
    let is_version = |rest: &str| rest.is_empty() || rest.starts_with(|c: char| !c.is_alphabetic());
    let is_library = |rest: &str| rest.contains(".so") && is_version(rest);
    name.strip_prefix("libruby").is_some_and(is_library)
        || crate::process::executables::interpreter(path) == Some(NAME)
            && !name.starts_with("truffle")
}

fn is_of_ruby(frame: &Frame) -> bool {
    frame.language == Language::Native && frame.module.as_deref().is_some_and(is_file_of_ruby)
}

fn is_named(frame: &Frame, part: &str) -> bool {
    frame.function.as_deref().is_some_and(|name| name.contains(part))
}

/// `[vdso]`
fn is_of_kernel(frame: &Frame) -> bool {
    frame.module.as_deref().is_some_and(|module| module.starts_with('['))
}

fn is_of_libc(frame: &Frame) -> bool {
    frame.module.as_deref().is_some_and(is_libc)
}

#[cfg(test)]
mod tests {
    use super::{called, may_have_gvl, version, waits_for_gvl, without_its_own};
    use crate::frame::Frame;
    use crate::process::maps;
    use crate::process::target::WaitDescriptors;
    use crate::report::sample::native;

    const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    const LIBRUBY: &str = "/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1.2";

    /// Of libruby, but for what waits itself and for what names its file; a dash has no name.
    fn stack(functions: &[&str]) -> Vec<Frame> {
        let frame = |name: &&str| match *name {
            "-" => Frame { function: None, ..native("", LIBRUBY) },
            name if name.starts_with("pthread_") => native(name, LIBC),
            name => match name.split_once(" in ") {
                Some((name, module)) => native(name, module),
                None => native(name, LIBRUBY),
            },
        };
        functions.iter().map(frame).collect()
    }

    const TIMED: &str = "pthread_cond_timedwait";

    /// The GVL is waited for after a call that went without it, which tells where names are stripped; by the names of
    /// its own functions, wherever they are called from.
    #[test]
    fn waits_for_the_gvl() {
        for names in [
            // Debian's 3.1, back from select.
            &[TIMED, "-", "-", "-", "rb_ensure", "rb_thread_fd_select", "-", "rb_vm_exec"][..],
            &[TIMED, "-", "-", "rb_nogvl", "NIO_select in /var/gems/nio4r_ext.so"],
            &["pthread_cond_wait", "rb_native_cond_wait", "-", "rb_nogvl"],
            // Its slice of time was over, in a callback.
            &[TIMED, "-", "-", "-", "rb_threadptr_execute_interrupts", "-", "rb_vm_exec"],
            // With symbols, 3.1 and 3.3.
            &[TIMED, "native_cond_timedwait", "do_gvl_timer", "gvl_acquire_common.lto_priv.0"],
            &["pthread_cond_wait", "rb_native_cond_wait", "thread_sched_wait_running_turn.part.0"],
        ] {
            assert!(waits_for_gvl(&stack(names)), "{names:?}");
            assert!(!may_have_gvl(&stack(names)), "{names:?}");
        }
        for names in [
            // Queue#pop, sleep, a mutex of Ruby's.
            &[TIMED, "-", "-", "-", "-", "rb_vm_exec"][..],
            &["pthread_cond_wait", "rb_native_cond_wait", "-", "rb_thread_sleep_forever"],
            &["pthread_cond_wait", "rb_native_cond_wait", "-", "-", "rb_ensure", "rb_mutex_sleep"],
            // A lock of an extension's, with the GVL or without it.
            &["pthread_mutex_lock", "lock in /var/gems/db.so", "rb_nogvl"],
            &["pthread_mutex_lock", "lock in /usr/bin/rubyist", "rb_vm_exec"],
            &[TIMED],
        ] {
            assert!(!waits_for_gvl(&stack(names)), "{names:?}");
        }
    }

    /// A thread that runs Ruby has the GVL, but where Ruby gave it back for what it called; one that Ruby did not
    /// start has nothing to do with it.
    #[test]
    fn runs_with_the_gvl() {
        for names in [
            &["-", "rb_ary_sort_bang", "-", "rb_vm_exec"][..],
            &["-", "-", "-", "-", "-", "-", "start_thread in /usr/lib/libc.so.6"],
            &["mpz_get_str in /usr/lib/libgmp.so.10", "rb_big2str", "-"],
            &["-", "rb_thread_call_with_gvl", "each_row in /var/gems/db.so", "rb_nogvl"],
            &["-", "rb_vm_exec", "-", "rb_threadptr_execute_interrupts", "rb_thread_fd_select"],
        ] {
            assert!(may_have_gvl(&stack(names)), "{names:?}");
        }
        for names in [
            &["deflate in /usr/lib/libz.so.1", "-", "rb_nogvl", "rb_vm_exec"][..],
            &["pthread_cond_wait", "rb_native_cond_wait", "-", "rb_vm_exec"],
            &["-", "rb_thread_wait_for", "-", "rb_vm_exec"],
            &["-", "rb_native_mutex_lock", "-", "-", "start_thread in /usr/lib/libc.so.6"],
            &["work in /var/gems/db.so", "start_thread in /usr/lib/libc.so.6"],
            &[],
        ] {
            assert!(!may_have_gvl(&stack(names)), "{names:?}");
        }
    }

    /// What Ruby's code called is told, and neither what that used nor what it was called through.
    #[test]
    fn what_ruby_called() {
        let of = |names: &[&str]| {
            let frames = stack(names);
            called(&frames).and_then(|frame| frame.function.as_deref().map(str::to_owned))
        };
        let sort =
            ["rb_str_cmp", "-", "qsort_r in /lib/libc.so.6", "rb_ary_sort_bang", "rb_ary_sort"];
        let through =
            ["rb_ensure", "-", "vm_exec_core", "rb_vm_exec", "rb_ary_each", "-", "rb_vm_exec"];
        assert_eq!(of(&[&sort[..], &through[..]].concat()).as_deref(), Some("rb_ary_sort"));
        let crypt = ["crypt_r in /usr/lib/libcrypt.so.1", "-", "-", "rb_vm_exec"];
        assert_eq!(of(&crypt).as_deref(), Some("crypt_r"));
        let clock =
            ["clock_gettime in [vdso]", "__clock_gettime in /lib/libc.so.6", "-", "rb_vm_exec"];
        assert_eq!(of(&clock), None, "under everything");
        assert_eq!(of(&["-", "vm_exec_core", "rb_vm_exec", "rb_ary_each"]), None, "Ruby itself");
    }

    /// From 3.3 on one epoll instance is Ruby's own; a second is a loop's.
    #[test]
    fn its_own_epoll_instance() {
        let is_left = |library: &str, instances| {
            let maps = format!("7f00-7f10 r-xp 00000000 08:01 7 /usr/lib/{library}\n");
            let found = WaitDescriptors { epoll: true, instances, io_uring: false };
            without_its_own(found, &maps::parse(&maps)).epoll
        };
        assert!(!is_left("libruby-3.3.so.3.3.8", 1));
        assert!(!is_left("libruby.so.3.10.1", 1));
        assert!(is_left("libruby-3.3.so.3.3.8", 2));
        assert!(is_left("libruby-3.1.so.3.1.2", 1));
        assert!(is_left("libuv.so.1.0.0", 1));
    }

    /// A file's name tells the version, or nothing.
    #[test]
    fn versions() {
        for (name, expected) in [
            ("libruby-3.1.so.3.1.2", Some("3.1.2")),
            ("libruby.so.3.3.6", Some("3.3.6")),
            ("ruby3.1", Some("3.1")),
            ("ruby", None),
        ] {
            assert_eq!(version(name).as_deref(), expected, "{name}");
        }
    }
}
