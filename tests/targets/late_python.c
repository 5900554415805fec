// Loads an interpreter two seconds after it has begun, and runs the script that it is given.

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    puts("ready");
    fflush(stdout);
    sleep(2);
    void *library = dlopen(getenv("LIBPYTHON"), RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        puts(dlerror());
        return 1;
    }
    int (*run)(int, char **) = (int (*)(int, char **))dlsym(library, "Py_BytesMain");
    return run(argc, argv);
}
