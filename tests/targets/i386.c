/* A 32-bit process without any library: it sleeps. `gcc -m32 -nostdlib -static` needs no 32-bit libc. */

#define NANOSLEEP 162

void _start(void)
{
    for (;;) {
        struct { int seconds, nanoseconds; } second = {1, 0};
        int result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(NANOSLEEP), "b"(&second), "c"(0) : "memory");
    }
}
