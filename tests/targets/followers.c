// An HTTP service in which threads share one epoll instance, in one of two styles.
//
// usage: followers leader|herd THREADS --truth FILE. `leader`: one thread at a time waits for one event, lets the next
// one wait, and serves. `herd`: all wait at once, and an event wakes one of them. Prints `ready PORT`, and at each
// SIGUSR1 `turns COUNT`: how often a wait has returned. `/sleep?ms=N` blocks the thread that serves it, `/all?ms=N` all
// threads at once: each 150 ms longer than the one before it, so that the first comes back after N ms.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int epoll, listener, everybody, threads, is_herd;
static FILE *truth;
static atomic_ulong turns;
static pthread_mutex_t lead = PTHREAD_MUTEX_INITIALIZER;

// All threads, held until the last one has come.
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t complete = PTHREAD_COND_INITIALIZER;
static int came, asked_ms;

static long long now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void record(const char *kind, int line, long long start_ns, long long end_ns) {
  char text[512];
  int size = snprintf(text, sizeof text,
                      "{\"kind\":\"%s\",\"function\":\"read_ledger\",\"file\":\"%s\",\"line\":%d,\"last_line\":%d,"
                      "\"thread\":%d,\"start_ns\":%lld,\"end_ns\":%lld}\n",
                      kind, __FILE__, line, line, gettid(), start_ns, end_ns);
  // In one piece: the reader may come at any time.
  fwrite(text, 1, size, truth);
  fflush(truth);
}

__attribute__((noinline)) static void read_ledger(int ms, const char *kind) {
  struct timespec time = {ms / 1000, ms % 1000 * 1000000L};
  long long start_ns = now_ns();
  nanosleep(&time, NULL); int line = __LINE__;
  record(kind, line, start_ns, now_ns());
}

static int gather(void) {
  pthread_mutex_lock(&gate);
  int rank = came++;
  if (came == threads) pthread_cond_broadcast(&complete);
  while (came < threads) pthread_cond_wait(&complete, &gate);
  pthread_mutex_unlock(&gate);
  return rank;
}

static void arm(int what, int fd) {
  struct epoll_event event = {EPOLLIN | EPOLLONESHOT, {.fd = fd}};
  epoll_ctl(epoll, what, fd, &event);
}

static void serve(int peer) {
  static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
  char head[4096];
  ssize_t size = read(peer, head, sizeof head - 1);
  if (size <= 0) {
    close(peer);
    return;
  }
  head[size] = 0;
  char *number = strstr(head, "ms=");
  int ms = number ? atoi(number + 3) : 0;
  if (!strncmp(head, "GET /sleep", 10)) read_ledger(ms, "one");
  if (!strncmp(head, "GET /all", 8)) {
    came = 0;
    asked_ms = ms;
    // A semaphore with one for each other thread; each takes one and comes to the gate.
    eventfd_write(everybody, threads - 1);
    read_ledger(ms + 150 * gather(), "all");
  }
  // An answer this short fits into any socket.
  if (write(peer, answer, sizeof answer - 1) < 0) perror("write");
  arm(EPOLL_CTL_MOD, peer);
}

static void handle(int fd) {
  if (fd == listener) {
    int peer = accept(listener, NULL, NULL), yes = 1;
    arm(EPOLL_CTL_MOD, listener);
    if (peer < 0) return;
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    arm(EPOLL_CTL_ADD, peer);
  } else if (fd == everybody) {
    eventfd_t one;
    int is_ours = eventfd_read(everybody, &one) == 0;
    arm(EPOLL_CTL_MOD, everybody);
    if (is_ours) read_ledger(asked_ms + 150 * gather(), "all");
  } else {
    serve(fd);
  }
}

static void *work(void *_) {
  for (;;) {
    struct epoll_event event;
    if (!is_herd) pthread_mutex_lock(&lead);
    int count = epoll_wait(epoll, &event, 1, -1);
    turns++;
    if (!is_herd) pthread_mutex_unlock(&lead);
    if (count > 0) handle(event.data.fd);
  }
  return _;
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  is_herd = !strcmp(argv[1], "herd");
  threads = atoi(argv[2]);
  truth = fopen(argv[4], "a");
  if (!truth || threads < 1) return 2;
  sigset_t asked;
  sigemptyset(&asked);
  sigaddset(&asked, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &asked, NULL);

  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof at;
  listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (void *)&at, size) || listen(listener, 64) || getsockname(listener, (void *)&at, &size)) return 1;
  everybody = eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK);
  epoll = epoll_create1(0);
  arm(EPOLL_CTL_ADD, listener);
  arm(EPOLL_CTL_ADD, everybody);
  for (int n = 0; n < threads; n++) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, NULL)) return 1;
  }
  // Lets them come to the wait.
  usleep(100000);
  printf("ready %d\n", ntohs(at.sin_port));
  fflush(stdout);
  for (int signal; sigwait(&asked, &signal) == 0;) {
    printf("turns %lu\n", turns);
    fflush(stdout);
  }
}
