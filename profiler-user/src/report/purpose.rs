//! The frames around a blocked system call to what it is for, where the call alone does not tell.

use profiler_ebpf::record::Registers;

use super::application::is_of_python;
use crate::frame::{Frame, Language, Stack};
use crate::syscall::{self, Operand, operand};

pub use super::schema::call::Purpose;

/// The C library's functions that look up host names.
const RESOLVERS: [&str; 9] = [
    "getaddrinfo",
    "getnameinfo",
    "gethostbyname",
    "gethostbyname_r",
    "gethostbyname2",
    "gethostbyname2_r",
    "gethostbyaddr",
    "gethostbyaddr_r",
    "__res_context_send",
];

/// SQLite's functions that wait for a lock. `sqlite3_sleep` waits for nobody.
const SQLITE: [&str; 5] =
    ["sqlite3_step", "sqlite3_exec", "sqlite3_prepare", "sqlite3_close", "sqlite3_wal_checkpoint"];

/// Calls that whoever spawned a child waits for it with: for what it writes, or in a loop of its own.
const WAITS_FOR_OUTPUT: [&str; 7] =
    ["read", "poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait"];

/// Calls that gRPC waits with until something comes into a completion queue.
const WAITS_OF_GRPC: [&str; 5] = ["epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll"];

/// gRPC's core by its libraries (C++, Python, Ruby), and by its functions where it is part of a program.
const GRPC_LIBRARIES: [&str; 3] = ["libgrpc", "cygrpc.", "grpc_c."];
const GRPC_FUNCTIONS: [&str; 2] = ["grpc_completion_queue_next", "grpc_completion_queue_pluck"];

/// The kernel's functions that wait until a process has said whether a file may be opened, read or executed
/// (fs/notify/fanotify/fanotify.c). Compilers put the second into the first. Beginnings.
const CHECKS: [&str; 2] = ["fanotify_handle_event", "fanotify_get_response"];

/// What the call is for.
pub fn of(registers: &Registers, stack: &Stack) -> Option<Purpose> {
    if syscall::is_futex(registers) {
        return None;
    }
    let frames = &stack.frames;
    if is_checked(&stack.kernel) {
        return Some(Purpose::AccessCheck);
    }
    let is_sleep = syscall::is_sleep(registers);
    // A function of the application's that SQLite calls waits for something of its own.
    let is_native = |frame: &&Frame| frame.language == Language::Native;
    let mut called_last = frames.iter().take_while(is_native);
    if (is_sleep || syscall::is_file_lock(registers))
        && called_last.any(|frame| SQLITE.iter().any(|known| name(frame).starts_with(known)))
    {
        Some(Purpose::SqliteBusy)
    } else if syscall::is_file_lock(registers) {
        Some(Purpose::FileLock)
    } else if starts_program(registers, frames) {
        Some(Purpose::ProgramStart)
    } else if is_of_grpc(registers, frames) {
        Some(Purpose::CompletionQueue)
    } else if matches!(operand(registers), Operand::Child(_))
        || (syscall::name(registers.syscall).is_some_and(|it| WAITS_FOR_OUTPUT.contains(&it))
            && frames.iter().any(spawns))
    {
        Some(Purpose::ChildProcess)
    } else if !is_sleep && frames.iter().any(|frame| RESOLVERS.contains(&name(frame))) {
        Some(Purpose::NameResolution)
    } else {
        None
    }
}

/// Whether a thread with this kernel stack waits for a process that checks files on access.
pub fn is_checked(kernel: &[Frame]) -> bool {
    kernel.iter().any(|frame| CHECKS.iter().any(|known| name(frame).starts_with(known)))
}

/// Whether gRPC itself waits: what it calls back, and what has called it, does not count.
fn is_of_grpc(registers: &Registers, frames: &[Frame]) -> bool {
    let is_native = |frame: &&Frame| frame.language == Language::Native;
    syscall::name(registers.syscall).is_some_and(|it| WAITS_OF_GRPC.contains(&it))
        && frames.iter().take_while(is_native).any(is_grpc)
}

/// Whether it is native code of gRPC's core.
pub fn is_grpc(frame: &Frame) -> bool {
    let module = frame.module.as_deref().unwrap_or_default();
    let file = module.rsplit('/').next().unwrap_or_default();
    GRPC_LIBRARIES.iter().any(|library| file.starts_with(library))
        || GRPC_FUNCTIONS.contains(&name(frame))
}

/// `CLONE_VFORK` (include/uapi/linux/sched.h): whoever calls waits until the child has become its program.
const CLONE_VFORK: u64 = 0x4000;

/// Functions that start a program and wait until it has begun, of the C library, libuv and CPython.
const STARTERS: [&str; 10] = [
    "posix_spawn",
    "posix_spawnp",
    "__spawni",
    "__spawnix",
    "vfork",
    "__vfork",
    "uv_spawn",
    "do_fork_exec",
    "subprocess_fork_exec",
    "_posixsubprocess_fork_exec",
];

/// Whether a call waits for a child to become its program. `read` does so where the child's end of a pipe is
/// closed by that.
fn starts_program(registers: &Registers, frames: &[Frame]) -> bool {
    let of_python = |frame: &Frame| {
        let file = frame.file.as_deref().unwrap_or_default();
        let function = name(frame).rsplit('.').next().unwrap_or_default();
        function == "_execute_child" && is_of_python(file, "subprocess.py")
    };
    let is_native = |frame: &&Frame| frame.language == Language::Native;
    let is_starter = |frame: &Frame| STARTERS.contains(&name(frame));
    let by_native = || frames.iter().take_while(is_native).any(is_starter);
    match syscall::name(registers.syscall) {
        Some("vfork") => true,
        Some("clone") => registers.args.first().is_some_and(|flags| flags & CLONE_VFORK != 0),
        Some("clone3") => by_native() || frames.iter().any(of_python),
        Some("read") => {
            let called = frames.iter().find(|frame| !is_native(frame));
            by_native() || called.is_some_and(of_python)
        }
        _ => false,
    }
}

fn name(frame: &Frame) -> &str {
    frame.function.as_deref().unwrap_or_default()
}

/// Whether the frame starts a child and waits for it: Python's `subprocess`, the Sync forms of
/// `child_process` in Node.js.
fn spawns(frame: &Frame) -> bool {
    let file = frame.file.as_deref().unwrap_or_default();
    match frame.language {
        Language::Python => is_of_python(file, "subprocess.py"),
        Language::JavaScript => {
            let is_sync = name(frame) == "spawnSync";
            is_sync && file.starts_with("node:") && file.ends_with("child_process")
        }
        Language::Native | Language::Kernel => false,
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::record::Registers;

    use super::{Purpose, of};
    use crate::frame::{Frame, Stack};
    use crate::report::sample::{javascript, kernel, native, python};

    fn stack(frames: &[Frame]) -> Stack {
        Stack { frames: frames.to_vec(), ..Stack::default() }
    }

    /// What spawned a child waits for it in whatever call; asyncio's own does not.
    #[test]
    fn waits_for_children() {
        let purpose = |syscall, frame| {
            let frames = stack(&[native("__read", "/c.so"), frame]);
            of(&Registers { syscall, ..Registers::default() }, &frames)
        };
        let (read, epoll_pwait, openat) = (0, 281, 257);
        let communicate = |file: &str| python("Popen.communicate", file, 1209);
        let module = "/usr/lib/python3.11/subprocess.py";
        let child = Some(Purpose::ChildProcess);
        assert_eq!(purpose(read, communicate(module)), child);
        assert_eq!(purpose(openat, communicate(module)), None);
        assert_eq!(purpose(read, communicate("/srv/app/subprocess.py")), None);
        assert_eq!(purpose(read, communicate("/usr/lib/python3.11/asyncio/subprocess.py")), None);
        let spawn = |file: &str| javascript("spawnSync", file, 832);
        assert_eq!(purpose(epoll_pwait, spawn("node:child_process")), child);
        assert_eq!(purpose(epoll_pwait, spawn("/srv/child_process")), None);
    }

    /// Whoever starts a program waits in `vfork` and its kin, or for the child's end of a pipe to close; who
    /// reads what a child writes waits for another thing.
    #[test]
    fn starts_of_programs() {
        let purpose = |syscall, first, frame| {
            let args = [first, 0, 0, 0, 0, 0];
            let frames = stack(&[native("__read", "/c.so"), frame]);
            of(&Registers { syscall, args, ..Registers::default() }, &frames)
        };
        let (read, clone, vfork, clone3) = (0, 56, 58, 435);
        let module = "/usr/lib/python3.11/subprocess.py";
        let start = || python("Popen._execute_child", module, 1844);
        let begun = Some(Purpose::ProgramStart);
        assert_eq!(purpose(vfork, 0, native("work", "/srv/shop")), begun);
        assert_eq!(purpose(clone, 0x4111, native("work", "/srv/shop")), begun);
        assert_eq!(purpose(clone, 0x3d_0f00, native("work", "/srv/shop")), None, "a thread");
        assert_eq!(purpose(clone3, 0x7000, native("__spawnix", "/c.so")), begun);
        assert_eq!(purpose(clone3, 0x7000, native("pthread_create", "/c.so")), None);
        assert_eq!(purpose(read, 7, start()), begun);
        assert_eq!(purpose(read, 7, native("uv_spawn", "/usr/bin/node")), begun);
        let communicate = python("Popen.communicate", module, 1209);
        assert_eq!(purpose(read, 7, communicate), Some(Purpose::ChildProcess));
    }

    /// A function that SQLite calls back may sleep as well: then nobody has locked the database.
    #[test]
    fn called_back_by_sqlite() {
        let registers = Registers { syscall: 230, ..Registers::default() };
        let frames = [
            native("clock_nanosleep", "/lib/libc.so.6"),
            native("time_sleep", "/usr/bin/python3.11"),
            python("slow_function", "/srv/app.py", 12),
            native("sqlite3_step", "/lib/libsqlite3.so.0"),
        ];
        assert_eq!(of(&registers, &stack(&frames)), None);
        let busy = [&frames[..1], &frames[3..]].concat();
        assert_eq!(of(&registers, &stack(&busy)), Some(Purpose::SqliteBusy));
    }

    fn purpose(syscall: i64, args: [u64; 6], function: &str) -> Option<Purpose> {
        let registers = Registers { syscall, args, ..Registers::default() };
        let frames = [native("__poll", "/lib/libc.so.6"), native(function, "/lib/x.so")];
        of(&registers, &stack(&frames))
    }

    /// The call and the functions that made it tell together what it is for.
    #[test]
    fn purposes() {
        let (sleep, poll, fcntl) = (230, 7, 72);
        let polling = [0x7000, 1, 5000, 0, 0, 0];
        assert_eq!(purpose(poll, polling, "getaddrinfo"), Some(Purpose::NameResolution));
        assert_eq!(purpose(poll, polling, "handle"), None);
        assert_eq!(purpose(sleep, [0; 6], "sqlite3_step"), Some(Purpose::SqliteBusy));
        assert_eq!(purpose(sleep, [0; 6], "sqlite3_sleep"), None, "it was asked to sleep");
        assert_eq!(purpose(fcntl, [3, 7, 0, 0, 0, 0], "sqlite3_step"), Some(Purpose::SqliteBusy));
        assert_eq!(purpose(fcntl, [3, 7, 0, 0, 0, 0], "save"), Some(Purpose::FileLock));
        assert_eq!(purpose(fcntl, [3, 6, 0, 0, 0, 0], "save"), None, "F_SETLK does not wait");
        assert_eq!(purpose(73, [3, 2, 0, 0, 0, 0], "save"), Some(Purpose::FileLock));
        assert_eq!(purpose(61, [0; 6], "run"), Some(Purpose::ChildProcess));
        assert_eq!(purpose(202, [0; 6], "getaddrinfo"), None, "a lock of the resolver's");
    }

    /// Whoever checks files is waited for in whatever call, but not by the one that reads the questions.
    #[test]
    fn checks_on_access() {
        let of_kernel = |syscall, functions: &[&str]| {
            let kernel = functions.iter().map(|name| kernel(name)).collect();
            let stack = Stack { kernel, ..Stack::default() };
            of(&Registers { syscall, ..Registers::default() }, &stack)
        };
        let (read, openat, futex) = (0, 257, 202);
        let opening = ["fanotify_handle_event", "fsnotify", "__fsnotify_parent", "do_dentry_open"];
        assert_eq!(of_kernel(openat, &opening), Some(Purpose::AccessCheck));
        let reading = ["fanotify_get_response.isra.0", "fanotify_handle_event", "vfs_read"];
        assert_eq!(of_kernel(read, &reading), Some(Purpose::AccessCheck));
        assert_eq!(of_kernel(read, &["fanotify_read", "vfs_read"]), None);
        assert_eq!(of_kernel(futex, &opening), None);
    }

    /// gRPC waits for its completion queue where its own code is innermost.
    #[test]
    fn completion_queues() {
        let (epoll_wait, poll, read) = (232, 7, 0);
        let with = |syscall, frames: &[Frame]| {
            let libc = [native("__poll", "/lib/libc.so.6")];
            let frames = [&libc, frames].concat();
            of(&Registers { syscall, args: [3; 6], ..Registers::default() }, &stack(&frames))
        };
        let cython = "/v/grpc/_cython/cygrpc.cpython-311-x86_64-linux-gnu.so";
        let nameless = || Frame { function: None, ..native("", cython) };
        let calling = || python("_UnaryUnaryMultiCallable._blocking", "/v/grpc/_channel.py", 1162);
        let queue = Some(Purpose::CompletionQueue);
        assert_eq!(with(epoll_wait, &[nameless(), calling()]), queue);
        assert_eq!(with(poll, &[native("cq_next", "/usr/lib/libgrpc.so.29")]), queue);
        assert_eq!(with(poll, &[native("grpc_completion_queue_next", "/srv/shop")]), queue);
        assert_eq!(with(read, &[nameless()]), None);
        let called_back = [python("on_state", "/srv/app.py", 7), nameless()];
        assert_eq!(with(poll, &called_back), None);
    }
}
