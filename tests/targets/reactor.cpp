// An HTTP service on asio whose threads share one io_context: one of them polls at a time, the others wait for work.
//
// usage: reactor THREADS --truth FILE. Prints `ready PORT`, and at each SIGUSR1 `turns COUNT`: how often the poll has
// returned. `/sleep?ms=N` blocks the thread that serves it, `/all?ms=N` blocks all threads at once: each 150 ms longer
// than the one before it, so that the first comes back after N ms.
#include <asio.hpp>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <string>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>
#include <vector>
using asio::ip::tcp;

static std::atomic<unsigned long> turns;
static unsigned threads;
static FILE* truth;

// The program's own, which asio calls instead of the library's: it counts.
extern "C" int epoll_wait(int epoll, struct epoll_event* events, int room, int timeout) {
  int count = (int)syscall(SYS_epoll_pwait, epoll, events, room, timeout, nullptr, 8);
  turns++;
  return count;
}

static long long now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void record(const char* kind, const char* function, int line, long long start_ns, long long end_ns) {
  char text[512];
  int size = snprintf(text, sizeof text,
                      "{\"kind\":\"%s\",\"function\":\"%s\",\"file\":\"%s\",\"line\":%d,\"last_line\":%d,"
                      "\"thread\":%d,\"start_ns\":%lld,\"end_ns\":%lld}\n",
                      kind, function, __FILE__, line, line, (int)gettid(), start_ns, end_ns);
  // In one piece: the reader may come at any time.
  fwrite(text, 1, size, truth);
  fflush(truth);
}

__attribute__((noinline)) void load_profile(int ms, const char* kind) {
  timespec time = {ms / 1000, ms % 1000 * 1000000L};
  long long start_ns = now_ns();
  nanosleep(&time, nullptr); int line = __LINE__;
  record(kind, "load_profile(int, char const*)", line, start_ns, now_ns());
}

// Holds its callers until as many have come as there are threads.
struct Gathering {
  std::mutex lock;
  std::condition_variable complete;
  unsigned came = 0;

  unsigned wait() {
    std::unique_lock<std::mutex> held(lock);
    unsigned rank = came++;
    if (came == threads) complete.notify_all();
    complete.wait(held, [&] { return came == threads; });
    return rank;
  }
};

struct Session : std::enable_shared_from_this<Session> {
  asio::io_context& io;
  tcp::socket socket;
  std::string received;
  explicit Session(asio::io_context& io, tcp::socket socket) : io(io), socket(std::move(socket)) {}

  void serve() {
    auto self = shared_from_this();
    asio::async_read_until(socket, asio::dynamic_buffer(received), "\r\n\r\n", [self](asio::error_code error, size_t size) {
      if (error) return;
      std::string head = self->received.substr(0, size);
      self->received.erase(0, size);
      const char* number = strstr(head.c_str(), "ms=");
      int ms = number ? atoi(number + 3) : 0;
      if (head.rfind("GET /all", 0) == 0) return self->block_all(ms);
      if (head.rfind("GET /sleep", 0) == 0) load_profile(ms, "one");
      self->answer();
    });
  }

  void block_all(int ms) {
    auto gathering = std::make_shared<Gathering>();
    auto self = shared_from_this();
    for (unsigned n = 1; n < threads; n++) {
      asio::post(io, [=] { load_profile(ms + 150 * (int)gathering->wait(), "all"); });
    }
    load_profile(ms + 150 * (int)gathering->wait(), "all");
    self->answer();
  }

  void answer() {
    auto self = shared_from_this();
    static const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    asio::async_write(socket, asio::buffer(text, sizeof text - 1), [self](asio::error_code error, size_t) {
      if (!error) self->serve();
    });
  }
};

static void accept(asio::io_context& io, tcp::acceptor& acceptor) {
  acceptor.async_accept([&](asio::error_code error, tcp::socket socket) {
    if (error) return;
    socket.set_option(tcp::no_delay(true));
    std::make_shared<Session>(io, std::move(socket))->serve();
    accept(io, acceptor);
  });
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  threads = atoi(argv[1]);
  truth = fopen(argv[3], "a");
  if (!truth || threads < 1) return 2;
  sigset_t asked;
  sigemptyset(&asked);
  sigaddset(&asked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &asked, nullptr);

  asio::io_context io(threads);
  tcp::acceptor acceptor(io, {asio::ip::make_address("127.0.0.1"), 0});
  accept(io, acceptor);
  std::vector<std::thread> all;
  for (unsigned n = 0; n < threads; n++) all.emplace_back([&] { io.run(); });
  // Lets them come to the poll.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  printf("ready %d\n", acceptor.local_endpoint().port());
  fflush(stdout);
  for (int signal; sigwait(&asked, &signal) == 0;) {
    printf("turns %lu\n", turns.load());
    fflush(stdout);
  }
}
