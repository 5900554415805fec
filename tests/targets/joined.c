// A loop in a thread of its own, for which the main thread waits in pthread_join, as many programs end their `main`.
//
// usage: joined served|frozen --truth FILE. Prints `ready 0` and serves; or, `frozen`, prints `frozen` whenever the loop
// is held up for six seconds, which is from the beginning on and then after each second of serving.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static FILE *truth;

static long long now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

__attribute__((noinline)) static void compact_journal(void) {
  struct timespec time = {6, 0};
  long long start_ns = now_ns();
  nanosleep(&time, NULL); int line = __LINE__;
  fprintf(truth,
          "{\"kind\":\"sleep\",\"function\":\"compact_journal\",\"file\":\"%s\",\"line\":%d,\"last_line\":%d,"
          "\"thread\":%d,\"start_ns\":%lld,\"end_ns\":%lld}\n",
          __FILE__, line, line, gettid(), start_ns, now_ns());
  fflush(truth);
}

static void *serve(void *kind) {
  int epoll = epoll_create1(0), is_frozen = !strcmp(kind, "frozen");
  struct epoll_event event;
  epoll_wait(epoll, &event, 1, 20);
  printf("ready 0\n");
  fflush(stdout);
  for (;;) {
    if (is_frozen) {
      printf("frozen\n");
      fflush(stdout);
      compact_journal();
    }
    for (int wait = 0; wait < 50; wait++) epoll_wait(epoll, &event, 1, 20);
  }
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  truth = fopen(argv[3], "a");
  pthread_t thread;
  if (!truth || pthread_create(&thread, NULL, serve, argv[1])) return 1;
  return pthread_join(thread, NULL);
}
