//! How much of everything: each bound once, with its reason.

/// Event loops watched in one process. A server that shards by thread runs one loop per core.
pub const MAX_LOOPS: u32 = 64;

/// Threads that are known to be one too many; those beyond are not even counted.
pub const MAX_SLOTLESS: u32 = 512;

/// Bytes of user stack copied at most, from the stack pointer upwards. Measured use: 1.5 to 3 KB
/// under asyncio, 2 to 10 KB in redis. A power of two, because the verifier follows masks.
pub const STACK_BYTES: usize = 64 * 1024;

/// Bytes read at once when the whole stack cannot be read in one piece.
pub const PAGE_BYTES: usize = 4096;

/// Interpreter frames kept at most. Of deeper stacks the innermost and the outermost are: what the code is
/// at, and whose it is.
pub const PYTHON_FRAMES: usize = 256;

/// Of these, those of the inner end. The rest are the outermost, where there are more than all.
pub const INNER_PYTHON_FRAMES: usize = PYTHON_FRAMES / 2;

/// Frames passed over in one step to the outer end, which is found to so many frames: of the outer half at
/// least half is filled.
pub const PYTHON_STRIDE: usize = PYTHON_FRAMES / 4;

/// Such steps at most: 16,384 frames, at some 30 ns each. Python itself stops at 1,000 unless it is told to
/// go on.
pub const PYTHON_STRIDES: usize = 256;

/// Kernel frames taken at most; what the kernel itself calls `PERF_MAX_STACK_DEPTH` is 127.
pub const KERNEL_FRAMES: usize = 64;

/// Between two looks of the daemon at a suspected turn in which something changes. Where nothing does it looks
/// seldom, and is woken.
pub const CLOSE_LOOK_NS: u64 = 10_000_000;

/// Bytes of the ring buffer: about a hundred captures of usual size. The daemon is woken when it is a quarter full.
pub const RING_BYTES: u32 = 1024 * 1024;

/// Threads outside of suspected turns whose captures may be put together at the same moment: on so
/// many CPUs at once.
pub const MAX_BUFFERS: u32 = 16;

/// Where every thread is asked for, one capture for so long, lest they crowd out the loops' own: a
/// machine with many CPUs has thousands of ticks a second.
pub const BYSTANDER_EVERY_NS: u64 = 1_000_000;

/// Thread states of an interpreter that the probes know at most: enough for a pool of a thousand.
pub const MAX_THREAD_STATES: u32 = 2048;

/// Tasks told apart that ran while a loop's thread was ready and had no CPU. On a machine that compiles
/// something, a hundred do in a second; those that run longest stay, and the time of the rest is
/// summed. A power of two.
pub const MAX_CONTENDERS: usize = 32;

/// CPUs on which it is recorded who runs instead of a loop's thread: what distributions' kernels are
/// built for is 8192, but of a machine with more than these only a hypervisor could tell. A power of two.
pub const MAX_CPUS: usize = 1024;

/// Loops' threads that wait for the same CPU and are followed at each of its switches, which all tasks
/// there pay for. Who runs instead of more is known only once they are among the first.
pub const MAX_WAITERS: usize = 4;

/// Processes whose accepts are counted at most: twice as many as large machines have workers.
pub const MAX_ACCEPTORS: u32 = 256;

/// A blocked stretch shorter than this is sent only where it stands for as much blocked time: see
/// [`crate::credit`].
pub const MIN_BLOCK_NS: u64 = 1_000_000;
