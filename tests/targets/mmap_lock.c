// An epoll loop that maps a page while another thread of it populates a huge mapping, and so keeps the lock of the
// address space.
//
// Prints `ready 0 PID`; after SIGUSR1 `begun START_NS` and `done START_NS END_NS CPU_NS`, the ns in which the page was
// mapped by its own clocks, and how much of that it was on a CPU. With an argument the other thread has nothing to do.

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

// Since Linux 5.14.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define HUGE_BYTES (1ul << 30)

static volatile sig_atomic_t go;

static void told(int number) {
    (void)number;
    go = 1;
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void *populate(void *range) {
    madvise(range, HUGE_BYTES, MADV_POPULATE_WRITE);
    return NULL;
}

// A function of its own, to be named.
__attribute__((noinline)) static void map_page(void) {
    void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    __asm__ volatile("" ::"r"(page) : "memory");
}

int main(int count, char **arguments) {
    (void)arguments;
    int loop = epoll_create1(0);
    struct epoll_event event;
    struct sigaction action = {.sa_handler = told};
    void *range = mmap(NULL, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (loop < 0 || range == MAP_FAILED || sigaction(SIGUSR1, &action, NULL) != 0) return 1;
    // Page by page, so that it takes its time.
    madvise(range, HUGE_BYTES, MADV_NOHUGEPAGE);
    printf("ready 0 %d\n", getpid());
    fflush(stdout);
    while (!go) epoll_wait(loop, &event, 1, 1000);
    pthread_t holder;
    if (count == 1) pthread_create(&holder, NULL, populate, range);
    epoll_wait(loop, &event, 1, 30);
    uint64_t start_ns = clock_ns(CLOCK_MONOTONIC), cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    printf("begun %lu\n", start_ns);
    fflush(stdout);
    map_page();
    cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_ns;
    printf("done %lu %lu %lu\n", start_ns, clock_ns(CLOCK_MONOTONIC), cpu_ns);
    fflush(stdout);
    for (int wait = 0; wait < 5; wait++) epoll_wait(loop, &event, 1, 100);
    // Without the time that it takes to unmap it all.
    _exit(0);
}
