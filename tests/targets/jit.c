// An epoll loop that makes code at run time and lists it in /tmp/perf-PID.map, as compilers inside of programs do.
//
// After SIGUSR1 the code spins for as long as a stall takes, twice: first under one name, then, after the list has
// grown, under another one at the same place. Prints `ready 0 PID` and `over`.

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STALL_NS 400000000

#define TRIES 5

static volatile sig_atomic_t go;

static void told(int number) {
    (void)number;
    go = 1;
}

static uint64_t cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

// push %rbp; mov %rsp,%rbp; 1: dec %rdi; jne 1b; pop %rbp; ret
static const uint8_t CODE[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3};

static void list(FILE *map, void *code, const char *name) {
    fprintf(map, "%lx %lx %s\n", (unsigned long)code, sizeof CODE, name);
    fflush(map);
}

// Kept whole, and its frame too: it is what the made code returns to.
__attribute__((noinline)) static void serve(void (*spin)(uint64_t), uint64_t rounds) {
    spin(rounds);
    __asm__ volatile("" ::: "memory");
}

// How many rounds make a stall: by the quickest trial, as others on the machine can only make it slower.
static uint64_t rounds_of_stall(void (*spin)(uint64_t)) {
    uint64_t trial = 20000000, quickest_ns = UINT64_MAX;
    for (int attempt = 0; attempt < TRIES; attempt++) {
        uint64_t before_ns = cpu_ns();
        spin(trial);
        uint64_t taken_ns = cpu_ns() - before_ns + 1;
        if (taken_ns < quickest_ns) quickest_ns = taken_ns;
    }
    return trial * STALL_NS / quickest_ns;
}

int main(void) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    FILE *map = fopen(path, "w");
    uint8_t *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int loop = epoll_create1(0);
    struct epoll_event event;
    if (map == NULL || code == MAP_FAILED || loop < 0) return 1;
    memcpy(code, CODE, sizeof CODE);
    void (*spin)(uint64_t) = (void (*)(uint64_t))(void *)code;
    struct sigaction action = {.sa_handler = told};
    if (sigaction(SIGUSR1, &action, NULL) != 0) return 1;
    uint64_t rounds = rounds_of_stall(spin);
    printf("ready 0 %d\n", getpid());
    fflush(stdout);
    while (!go) epoll_wait(loop, &event, 1, 100);
    // The turn that the signal began is no part of the stall.
    epoll_wait(loop, &event, 1, 100);
    list(map, code, "Orders::total(int, long)");
    serve(spin, rounds);
    for (int wait = 0; wait < 5; wait++) epoll_wait(loop, &event, 1, 100);
    list(map, code, "Orders::discount(int)");
    serve(spin, rounds);
    for (int wait = 0; wait < 5; wait++) epoll_wait(loop, &event, 1, 100);
    unlink(path);
    printf("over\n");
    return 0;
}
