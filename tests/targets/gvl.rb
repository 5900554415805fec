# A loop around IO.select whose other thread keeps Ruby's GVL: it computes, or, with --blocked, waits in C code that does
# not give it back. With --healthy, as a twin, it gives it back.
#
# Prints `ready 0 PID`, and after SIGUSR1 for every time `holding TID START_NS` and `held END_NS`: who kept the GVL, and
# from when until when. Ends by itself.

# Well past twice the threshold, and past the GVL's own slice of 100 ms, after which Ruby code would give it back.
HOLD_MS = 400

$stdout.sync = true

def now_ns = Process.clock_gettime(Process::CLOCK_MONOTONIC, :nanosecond)

def thread_id = File.readlink("/proc/thread-self").split("/").last

# Names that take that long to sort. That is one call into C, which keeps the GVL throughout.
def names_that_take(least_ms)
  count = 1 << 15
  loop do
    names = Array.new(count) { |n| "reports/2026/november/#{n * 7919 % count}" }
    began_ns = now_ns
    names.sort
    return names if now_ns - began_ns >= least_ms * 1_000_000
    count = count * 3 / 2
  end
end

def hold(times, names)
  times.times do
    sleep 0.5
    puts "holding #{thread_id} #{now_ns}"
    names.sort
    puts "held #{now_ns}"
  end
end

# As an extension that waits without rb_thread_call_without_gvl.
def wait_in_c(times)
  require "fiddle"
  types = [Fiddle::TYPE_UINTPTR_T]
  usleep = Fiddle::Function.new(Fiddle.dlopen(nil)["usleep"], types, Fiddle::TYPE_INT, need_gvl: true)
  times.times do
    sleep 0.5
    puts "holding #{thread_id} #{now_ns}"
    usleep.call(HOLD_MS * 1000)
    puts "held #{now_ns}"
  end
end

def give_back(times)
  times.times { sleep 1.5 }
end

healthy = ARGV.delete("--healthy")
blocked = ARGV.delete("--blocked")
times = ARGV.empty? ? 3 : Integer(ARGV.last)
names = healthy || blocked ? [] : names_that_take(HOLD_MS)

watched, signal = IO.pipe
trap("USR1") { signal.write_nonblock(".") }
puts "ready 0 #{Process.pid}"
IO.select([watched])
watched.read_nonblock(1)

worker = Thread.new do
  next give_back(times) if healthy

  blocked ? wait_in_c(times) : hold(times, names)
end
worker.name = "reports"
IO.select([watched], nil, nil, 0.01) while worker.alive?
