// A loop whose handlers block and compute in templates of the standard library, and in one of its own that returns a
// type of the standard library's.
//
// Prints `ready 0 PID`, and after SIGUSR1 for every turn `stalled JSON`: from when until when, and which function is to
// blame. Ends by itself.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <sys/epoll.h>
#include <thread>
#include <type_traits>
#include <unistd.h>
#include <vector>

static volatile std::sig_atomic_t is_watched;
static volatile std::uint64_t kept;

static long long now_ns(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

__attribute__((noinline)) void wait_for_replica() {
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
}

__attribute__((noinline)) void rank_results() {
  long long until_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) + 300000000;
  std::uint64_t seed = 1;
  while (now_ns(CLOCK_THREAD_CPUTIME_ID) < until_ns) {
    std::vector<std::uint64_t> results(200000);
    for (auto& one : results) one = seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    std::sort(results.begin(), results.end(), [](auto a, auto b) { return a > b; });
    kept = results[0];
  }
}

// Its own, whatever it returns.
template <class Number>
__attribute__((noinline)) std::enable_if_t<std::is_integral_v<Number>, std::vector<Number>> count_words(Number most) {
  long long until_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) + 300000000;
  std::vector<Number> words(64);
  for (Number word = 0; word < most && (word % 4096 || now_ns(CLOCK_THREAD_CPUTIME_ID) < until_ns); word++)
    words.data()[word % 64] += word * word;
  return words;
}

int main() {
  int loop = epoll_create1(0);
  struct sigaction action = {};
  action.sa_handler = [](int) { is_watched = 1; };
  sigaction(SIGUSR1, &action, nullptr);
  printf("ready 0 %d\n", getpid());
  fflush(stdout);
  epoll_event event;
  while (!is_watched) epoll_wait(loop, &event, 1, 50);
  const char* names[] = {"wait_for_replica", "rank_results", "count_words"};
  for (int turn = 0; turn < 3; turn++) {
    for (int wait = 0; wait < 6; wait++) epoll_wait(loop, &event, 1, 50);
    long long start_ns = now_ns(CLOCK_MONOTONIC);
    if (turn == 0) wait_for_replica();
    if (turn == 1) rank_results();
    if (turn == 2) kept = count_words<std::uint64_t>(~0ull)[7];
    printf("stalled {\"function\": \"%s\", \"start_ns\": %lld, \"end_ns\": %lld}\n", names[turn], start_ns,
           now_ns(CLOCK_MONOTONIC));
    fflush(stdout);
  }
  for (int wait = 0; wait < 6; wait++) epoll_wait(loop, &event, 1, 50);
}
