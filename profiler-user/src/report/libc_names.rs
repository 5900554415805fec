//! A catalogue: functions of the C library that programs linked statically have among their own.
//!
//! Those in which a thread blocks, spends its time, or is called back from. A program of its own cannot
//! define most of them, as the library's other parts would then call it.

use std::collections::BTreeSet;
use std::sync::LazyLock;

/// Whether a function without source line is the library's: by this list, or by what C reserves for it.
pub fn is_of_libc(name: &str) -> bool {
    is_reserved(name) || KNOWN.contains(name)
}

/// Two underscores, or one and a capital, but for what compilers write for C++ and Rust.
fn is_reserved(name: &str) -> bool {
    let Some(rest) = name.strip_prefix('_') else { return false };
    let is_mangled = rest.starts_with(['Z', 'R']);
    let reserved =
        rest.starts_with('_') || rest.starts_with(|first: char| first.is_ascii_uppercase());
    (reserved && !is_mangled) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Names of glibc's that C reserves only at the level of files.
const PREFIXES: [&str; 7] = ["_dl_", "_int_", "_nl_", "_start", "_init", "_fini", "_exit"];

static KNOWN: LazyLock<BTreeSet<&str>> = LazyLock::new(|| NAMES.split_whitespace().collect());

/// `sccp`, `cancel` and the like are musl's own.
const NAMES: &str = "
    accept accept4 access bind cancel chdir chmod chown clock_gettime clock_nanosleep clone close
    closedir connect copy_file_range creat daemon dlclose dlopen dlsym dup dup2 dup3 epoll_pwait
    epoll_wait eventfd_read eventfd_write execl execle execlp execv execve execvp execvpe exit
    explicit_bzero fallocate fchdir fchmod fchown fclose fcntl fdatasync fflush fgetc fgets flock
    fopen fork fprintf fputc fputs fread freopen fscanf fseek fseeko fstat fstatat fsync ftell
    ftruncate futimens fwrite getaddrinfo getc getchar getdelim getdents gethostbyaddr
    gethostbyname gethostbyname2 getline getnameinfo getpwnam getpwuid getrandom gets getsockopt
    gettimeofday glob inotify_add_watch ioctl isatty kill linkat listen lockf lseek madvise mkdir
    mkstemp mlock mmap mprotect mq_receive mq_send mq_timedreceive mq_timedsend mremap msgrcv
    msgsnd msync munmap name_from_dns name_from_hosts nanosleep nftw ftw open open64 openat opendir
    pause pclose perror poll popen posix_fadvise posix_fallocate posix_spawn posix_spawnp ppoll
    pread pread64 preadv printf pselect pwrite pwrite64 pwritev putc puts qsort qsort_r bsearch
    raise read readdir readdir64 readlink readv realpath recv recvfrom recvmmsg recvmsg rename
    renameat res_query res_search rewind rmdir scandir scanf sccp select semop semtimedop send
    sendfile sendmmsg sendmsg sendto setsockopt setvbuf shutdown sigsuspend sigtimedwait sigwait
    sigwaitinfo sleep snprintf socket socketpair splice sprintf sscanf stat stat64 statfs sync
    sync_file_range syncfs syscall sysmalloc system tcdrain tcsetattr tee truncate unlink unlinkat
    usleep vdprintf vfork vfprintf vfscanf vmsplice vprintf vsnprintf vsprintf wait wait3 wait4
    waitid waitpid write writev
    aligned_alloc calloc free malloc malloc_consolidate malloc_trim memalign posix_memalign
    realloc reallocarray sysmalloc unlink_chunk
    memccpy memchr memcmp memcpy memmem memmove mempcpy memrchr memset regcomp regexec stpcpy
    strcasecmp strcasestr strcat strchr strcmp strcpy strcspn strdup strerror strftime strlen
    strncasecmp strncat strncmp strncpy strndup strpbrk strptime strrchr strsep strspn strstr
    strtod strtok strtok_r strtol strtoul wcslen wmemcpy
    cnd_timedwait cnd_wait mtx_lock mtx_timedlock pthread_barrier_wait pthread_cond_broadcast
    pthread_cond_signal pthread_cond_timedwait pthread_cond_wait pthread_create pthread_join
    pthread_mutex_lock pthread_mutex_timedlock pthread_mutex_unlock pthread_once
    pthread_rwlock_rdlock pthread_rwlock_unlock pthread_rwlock_wrlock pthread_timedjoin_np
    sem_timedwait sem_wait thrd_join thrd_sleep start start_c start_thread libc_start_main_stage2
    libc_start_init
";

#[cfg(test)]
mod tests {
    use super::is_of_libc;

    /// What the library reserves is its own, and what it is known to have; other names are not.
    #[test]
    fn names() {
        for name in
            ["__clock_nanosleep", "nanosleep", "sccp", "_IO_fflush", "_start", "__libc_start_main"]
        {
            assert!(is_of_libc(name), "{name}");
        }
        let others =
            ["charge_card", "_ZN4core3fmt5write", "_RNvC6target4main", "main", "_helper", "reader"];
        for name in others {
            assert!(!is_of_libc(name), "{name}");
        }
    }
}
