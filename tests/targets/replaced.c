// An epoll loop that computes for 0.4 s: on SIGUSR1 in a function of its own, on SIGUSR2 in one of a library. The build
// names both: OWN and LIBRARY. Prints `ready`.

#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

void LIBRARY(void);

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

__attribute__((noinline)) void OWN(void) {
    volatile unsigned long rounds = 0;
    for (double until = now_s() + 0.4; now_s() < until;)
        for (int round = 0; round < 100000; round++) rounds++;
}

int main(void) {
    sigset_t told;
    sigemptyset(&told);
    sigaddset(&told, SIGUSR1);
    sigaddset(&told, SIGUSR2);
    sigprocmask(SIG_BLOCK, &told, NULL);
    int loop = epoll_create1(0), signals = signalfd(-1, &told, 0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(loop, EPOLL_CTL_ADD, signals, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct signalfd_siginfo which;
        if (epoll_wait(loop, &event, 1, 50) != 1) continue;
        if (read(signals, &which, sizeof which) != sizeof which) return 1;
        if (which.ssi_signo == SIGUSR1)
            OWN();
        else
            LIBRARY();
    }
}
