// An epoll loop that maps a page while another thread of it populates a huge mapping, and so keeps the lock of the
// address space.
//
// The mapping is of one small file again and again, and so long that populating it takes POPULATE_NS: it costs a fast
// machine no more memory than a slow one. Prints `ready 0 PID`; after SIGUSR1 `begun START_NS` and `done START_NS END_NS CPU_NS`, the ns in which the page was
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

// Well past twice the threshold.
#define POPULATE_NS 600000000ull
#define FILE_BYTES (64ul << 20)
#define TRIES 3

// A stretch of addresses.
struct range {
    char *start;
    size_t bytes;
};

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

static void *populate(void *argument) {
    const struct range *range = argument;
    madvise(range->start, range->bytes, MADV_POPULATE_WRITE);
    return NULL;
}

// Maps the file so often, end to end.
static struct range map_often(int file, size_t times) {
    struct range range = {.bytes = times * FILE_BYTES};
    range.start = mmap(NULL, range.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range.start == MAP_FAILED) return range;
    for (size_t done = 0; done < range.bytes; done += FILE_BYTES) {
        void *part = range.start + done;
        if (mmap(part, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
            range.start = MAP_FAILED;
            return range;
        }
        // Page by page, so that it takes its time.
        madvise(part, FILE_BYTES, MADV_NOHUGEPAGE);
    }
    return range;
}

// How often the file has to be mapped: by the quickest trial, as others on the machine can only make it slower.
static size_t times_of_stall(int file) {
    uint64_t quickest_ns = UINT64_MAX;
    // Once more: the first trial also takes memory for the file.
    for (int attempt = 0; attempt <= TRIES; attempt++) {
        struct range trial = map_often(file, 1);
        if (trial.start == MAP_FAILED) return 1;
        uint64_t before_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        populate(&trial);
        uint64_t taken_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - before_ns + 1;
        if (taken_ns < quickest_ns) quickest_ns = taken_ns;
        munmap(trial.start, trial.bytes);
    }
    return POPULATE_NS / quickest_ns + 1;
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
    int file = memfd_create("populated", 0);
    if (loop < 0 || file < 0 || ftruncate(file, FILE_BYTES) != 0 || sigaction(SIGUSR1, &action, NULL) != 0) return 1;
    struct range range = map_often(file, times_of_stall(file));
    if (range.start == MAP_FAILED) return 1;
    printf("ready 0 %d\n", getpid());
    fflush(stdout);
    while (!go) epoll_wait(loop, &event, 1, 1000);
    pthread_t holder;
    if (count == 1) pthread_create(&holder, NULL, populate, &range);
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
