//! scratch
use stalltrace::source::{EventSource, Ticks, kernel::*};
fn main() -> anyhow::Result<()> {
    let pid: u32 = std::env::args().nth(1).unwrap().parse()?;
    preflight::mount_tracefs_privately().unwrap();
    let t = std::time::Instant::now();
    let mut s = KernelSource::attach(Watch { tgid: pid, threshold_ns: 100_000_000, waits: attach::Waits { poll: true, io_uring: true }, hooks: Default::default() })?;
    eprintln!("{:?} {:#?}", t.elapsed(), s.probes());
    for t in s.threads()? { println!("{t:?}"); }
    s.set_ticks(Ticks::On)?;
    for _ in 0..50 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        for e in s.drain() { match e { stalltrace::source::Event::Captured(c) => println!("cap {:?} {} {} {}", c.head, c.kernel.len(), c.python.len(), c.stack.len()), e => println!("{e:?}") } }
    }
    println!("{:?} {:?}", s.loops(), s.losses());
    Ok(())
}
