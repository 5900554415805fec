// Loops of many short turns and a stall now and then, and hogs that take their CPUs away at every moment.
//
// `preempt hog` is one of these. `preempt SECONDS LOOPS TRUTH` prints `ready` and idles until SIGUSR1; then it
// plays, writes what its clocks showed before and after each wait, and prints `done`. TRUTH holds for each loop
// its thread and the number of its waits, then the waits, all as 64-bit numbers.

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MOST_LOOPS = 8, MOST_WAITS = 1000000 };
static const int64_t MS = 1000000;

struct wait { int64_t before, after, cpu_before, cpu_after; };

static struct wait *waits[MOST_LOOPS];
static int64_t tids[MOST_LOOPS], counts[MOST_LOOPS];
static double seconds;
static volatile sig_atomic_t begun;
static volatile unsigned long sink;

static int64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static unsigned next(unsigned *random) {
    *random = *random * 1103515245u + 12345u;
    return *random >> 8;
}

__attribute__((noinline)) static void burn(int64_t ns) {
    int64_t end = now(CLOCK_THREAD_CPUTIME_ID) + ns;
    while (now(CLOCK_THREAD_CPUTIME_ID) < end)
        for (int i = 0; i < 2000; i++) sink += i;
}

__attribute__((noinline)) static void nap(int64_t ns) {
    struct timespec time = {0, ns};
    nanosleep(&time, NULL);
    sink++;
}

static void hog(void) {
    unsigned random = getpid();
    for (;;) {
        int64_t end = now(CLOCK_MONOTONIC) + next(&random) % (3 * MS);
        while (now(CLOCK_MONOTONIC) < end) sink++;
        struct timespec time = {0, next(&random) % (3 * MS / 2)};
        nanosleep(&time, NULL);
    }
}

static void *loop(void *number) {
    int own = (int)(long)number;
    unsigned random = own * 7 + 1;
    int instance = epoll_create1(0), event = eventfd(0, EFD_NONBLOCK);
    struct epoll_event wanted = {.events = EPOLLIN}, ready;
    epoll_ctl(instance, EPOLL_CTL_ADD, event, &wanted);
    tids[own] = syscall(SYS_gettid);
    int64_t end = INT64_MAX, next_stall = INT64_MAX;
    for (int64_t n = 0; n < MOST_WAITS; n++) {
        if (begun && end == INT64_MAX) {
            next_stall = now(CLOCK_MONOTONIC);
            end = next_stall + seconds * 1e9;
        }
        // Of ten waits eight only look, and every other one finds something.
        unsigned chance = next(&random) % 10;
        int timeout = !begun ? 50 : chance < 8 ? 0 : chance - 7;
        uint64_t one = 1;
        int has_event = begun && next(&random) % 2;
        if (has_event && write(event, &one, sizeof one) < 0) abort();
        struct wait *wait = &waits[own][n];
        counts[own] = n + 1;
        wait->cpu_before = now(CLOCK_THREAD_CPUTIME_ID);
        wait->before = now(CLOCK_MONOTONIC);
        epoll_wait(instance, &ready, 1, timeout);
        wait->after = now(CLOCK_MONOTONIC);
        wait->cpu_after = now(CLOCK_THREAD_CPUTIME_ID);
        if (wait->after > end) break;
        if (has_event && read(event, &one, sizeof one) < 0) abort();
        if (wait->after >= next_stall) {
            if (next(&random) % 2) burn(30 * MS); else nap(30 * MS);
            next_stall = now(CLOCK_MONOTONIC) + 60 * MS + next(&random) % (200 * MS);
        } else if (begun && next(&random) % 1000 == 0) {
            burn(2 * MS);
        }
    }
    return NULL;
}

static void on_signal(int signal) {
    begun = signal;
}

int main(int count, char **arguments) {
    // Whoever started it may be killed.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (count == 2 && !strcmp(arguments[1], "hog")) hog();
    long loops = count == 4 ? atol(arguments[2]) : 0;
    if (loops < 1 || loops > MOST_LOOPS) return 2;
    seconds = atof(arguments[1]);
    signal(SIGUSR1, on_signal);
    for (int i = 0; i < loops; i++)
        if (!(waits[i] = malloc(MOST_WAITS * sizeof(struct wait)))) return 1;
    pthread_t threads[MOST_LOOPS];
    for (long i = 1; i < loops; i++) pthread_create(&threads[i], NULL, loop, (void *)i);
    puts("ready");
    fflush(stdout);
    loop(NULL);
    for (int i = 1; i < loops; i++) pthread_join(threads[i], NULL);

    FILE *truth = fopen(arguments[3], "w");
    if (!truth) return 1;
    for (int i = 0; i < loops; i++) {
        fwrite(&tids[i], sizeof tids[i], 1, truth);
        fwrite(&counts[i], sizeof counts[i], 1, truth);
        fwrite(waits[i], sizeof(struct wait), counts[i], truth);
    }
    if (fclose(truth)) return 1;
    puts("done");
    return 0;
}
