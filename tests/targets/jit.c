// An epoll loop that makes code at run time and lists it in /tmp/perf-PID.map, as compilers inside of programs do.
//
// The code spins for as long as a stall takes, twice: first under one name, then, after the list has grown,
// under another one at the same place. Prints `ready 0 PID` and `over`.

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define STALL_NS 400000000

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
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
    uint64_t before_ns = now_ns(), trial = 20000000;
    spin(trial);
    uint64_t rounds = trial * STALL_NS / (now_ns() - before_ns + 1);
    printf("ready 0 %d\n", getpid());
    fflush(stdout);
    // Time to attach.
    for (int wait = 0; wait < 25; wait++) epoll_wait(loop, &event, 1, 100);
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
