// A library of one function, which computes for 0.4 s. The build names it: LIBRARY.

#include <time.h>

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

void LIBRARY(void) {
    volatile unsigned long rounds = 0;
    for (double until = now_s() + 0.4; now_s() < until;)
        for (int round = 0; round < 100000; round++) rounds++;
}
