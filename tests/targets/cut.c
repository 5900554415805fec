// An epoll loop whose handlers sleep in the C library, each by another way, for whoever has to find them there
// without unwind tables: linked with musl, or statically.
//
// Usage: cut [--healthy] --truth FILE. Prints `ready 0 PID`, then serves until it is killed. Writes down each stall.

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static FILE *truth;
static long stall_ms = 250;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void record(const char *function, int line, int64_t start_ns) {
    // Writing it down is no part of it.
    int64_t end_ns = now_ns();
    fprintf(truth,
            "{\"kind\":\"sleep\",\"function\":\"%s\",\"file\":\"%s\",\"line\":%d,\"last_line\":%d,"
            "\"thread\":%ld,\"start_ns\":%lld,\"end_ns\":%lld}\n",
            function, __FILE__, line, line, syscall(SYS_gettid), (long long)start_ns, (long long)end_ns);
    fflush(truth);
}

#define STALL(STATEMENT)                                     \
    do {                                                     \
        int64_t start_ns = now_ns();                         \
        STATEMENT;                                           \
        if (stall_ms >= 100) record(__func__, __LINE__, start_ns); \
    } while (0)

#define KEPT __attribute__((noinline, noclone))

// Leaves return addresses behind on the stack, as all code does: some into functions that do not sleep.
KEPT static int format_invoice(int order, int depth) {
    char text[400];
    int length = snprintf(text, sizeof text, "%d %d %f", order, depth, order / 7.0);
    if (depth > 0) length += format_invoice(order + 1, depth - 1);
    return length + text[length & 63];
}

KEPT static int charge_card(int order) {
    char receipt[512];
    struct timespec pause = {.tv_sec = stall_ms / 1000, .tv_nsec = stall_ms % 1000 * 1000000};
    int length = format_invoice(order, 3);
    STALL(nanosleep(&pause, NULL));
    memset(receipt, order, sizeof receipt);
    return receipt[length & 255];
}

KEPT static int ask_warehouse(int order) {
    struct pollfd none;
    int length = format_invoice(order, 5);
    STALL(poll(&none, 0, stall_ms));
    return length + order;
}

KEPT static int print_label(int order) {
    int length = format_invoice(order, 1);
    STALL(usleep(stall_ms * 1000));
    return length - order;
}

static int (*volatile handlers[])(int) = {charge_card, ask_warehouse, print_label};

KEPT static int dispatch(int order) {
    return handlers[order % 3](order) + 1;
}

int main(int count, char **words) {
    for (int at = 1; at < count; at++) {
        if (!strcmp(words[at], "--healthy")) stall_ms = 2;
        if (!strcmp(words[at], "--truth") && at + 1 < count) truth = fopen(words[at + 1], "w");
    }
    int loop = epoll_create1(0);
    struct epoll_event event;
    if (truth == NULL || loop < 0) return 1;
    printf("ready 0 %d\n", getpid());
    fflush(stdout);
    for (int order = 0;; order++) {
        epoll_wait(loop, &event, 1, 150);
        dispatch(order);
    }
}
