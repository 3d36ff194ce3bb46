/* A disk that can lose power and fail, for LD_PRELOAD.
 *
 * It watches the files below $LISIERE_DISK_ROOT. What it does stands in a page that the test shares with it
 * ($LISIERE_DISK_CONTROL, struct control). Recording, it writes every change to $LISIERE_DISK_LOG and lets each
 * sync pass as a record alone: what a power cut leaves is worked out from that log afterwards, where nothing counts
 * that was not synced. Failing, it refuses every n-th write or sync, half of a refused write having been written.
 * A call that changes a file and is not understood here is recorded as such, and the test fails on it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct control {
    int64_t record;     /* whether changes are recorded, and syncs left out */
    int64_t cut_at;     /* the process ends itself before this many more changes; 0: never */
    int64_t fail_every; /* every n-th write or sync fails; 0: none */
    int64_t fail_with;  /* by this errno */
    int64_t calls;      /* writes and syncs so far */
    int64_t failed;     /* of which were refused */
};

#define FILES_MAX 4096

static struct control *control;
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { dev_t device; ino_t inode; int id; } files[FILES_MAX];
static int file_count, ids;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("LISIERE_DISK_ROOT"), *page = getenv("LISIERE_DISK_CONTROL");
    const char *log = getenv("LISIERE_DISK_LOG");
    if (!folder || !page || !log || strlen(folder) >= sizeof root) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, page, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *shared = (void *)syscall(SYS_mmap, NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared == MAP_FAILED) return;
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    strcpy(root, folder);
    root_length = strlen(root);
    control = shared;
}

/* The absolute path if it is the root or below it, else NULL. */
static const char *watched(const char *path, char *space) {
    if (!control || !path) return NULL;
    if (path[0] != '/') {
        if (!getcwd(space, PATH_MAX) || strlen(space) + strlen(path) + 2 > PATH_MAX) return NULL;
        strcat(strcat(space, "/"), path);
        path = space;
    }
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]) ? path : NULL;
}

static void record(const void *data, size_t size, const char *format, ...) {
    char head[PATH_MAX + 64];
    va_list rest;
    va_start(rest, format);
    int length = vsnprintf(head, sizeof head, format, rest);
    va_end(rest);
    struct iovec parts[2] = {{head, (size_t)length}, {(void *)data, size}};
    int before = errno;
    if (control->record && syscall(SYS_writev, log_fd, parts, size ? 2 : 1) != (long)(length + size)) abort();
    errno = before;
}

/* Take the lock for one change. This is where the power goes. */
static void enter(void) {
    pthread_mutex_lock(&lock);
    if (control->record && control->cut_at > 0 && --control->cut_at == 0) {
        syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
        for (;;) pause();
    }
}

static void leave(void) { pthread_mutex_unlock(&lock); }

/* The id of a watched file's descriptor, or 0. */
static int id_of(int fd) {
    struct stat found;
    if (!control || !file_count || fstat(fd, &found) || !S_ISREG(found.st_mode)) return 0;
    for (int at = 0; at < file_count; at++)
        if (files[at].inode == found.st_ino && files[at].device == found.st_dev) return files[at].id;
    return 0;
}

static void opened(int fd, const char *path, int existed, int flags) {
    struct stat found;
    if (fstat(fd, &found) || !S_ISREG(found.st_mode)) return;
    int at = 0;
    while (at < file_count && !(files[at].inode == found.st_ino && files[at].device == found.st_dev)) at++;
    if (at == FILES_MAX) abort();
    if (at == file_count || !existed) { /* an inode's number comes again after its file is gone */
        files[at].device = found.st_dev;
        files[at].inode = found.st_ino;
        files[at].id = ++ids;
        if (at == file_count) file_count++;
        record(NULL, 0, "%c %d %s\n", existed ? 'F' : 'C', files[at].id, path);
    }
    if (flags & O_TRUNC) record(NULL, 0, "T %d 0\n", files[at].id);
}

/* Whether this call is one that the disk refuses; errno then says why. */
static int refuses(void) {
    if (!control->fail_every) return 0;
    int64_t call = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (call % control->fail_every) return 0;
    __atomic_add_fetch(&control->failed, 1, __ATOMIC_SEQ_CST);
    errno = (int)control->fail_with;
    return 1;
}

static int open_any(const char *path, int flags, mode_t mode) {
    char space[PATH_MAX];
    const char *whole = watched(path, space);
    if (!whole) return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (flags & O_CREAT) enter(); else pthread_mutex_lock(&lock);
    struct stat found;
    int existed = !(flags & O_CREAT) || !stat(whole, &found);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0) {
        int before = errno;
        opened(fd, whole, existed, flags);
        errno = before;
    }
    leave();
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        return open_any(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        if (folder == AT_FDCWD || path[0] == '/') return open_any(path, flags, mode); \
        return (int)syscall(SYS_openat, folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

static ssize_t write_any(int fd, const void *data, size_t size, int64_t offset, int id) {
    int here = offset < 0;
    enter();
    int no = refuses();
    size_t taken = no ? size / 2 : size;
    if (here) {
        struct stat found;
        offset = (fcntl(fd, F_GETFL) & O_APPEND) && !fstat(fd, &found) ? found.st_size : lseek(fd, 0, SEEK_CUR);
    }
    int why = errno;
    ssize_t done = here ? syscall(SYS_write, fd, data, taken) : syscall(SYS_pwrite64, fd, data, taken, offset);
    if (done > 0) record(data, (size_t)done, "W %d %lld %zd\n", id, (long long)offset, done);
    leave();
    if (no) errno = why;
    return no ? -1 : done;
}

ssize_t write(int fd, const void *data, size_t size) {
    int id = id_of(fd);
    return id ? write_any(fd, data, size, -1, id) : syscall(SYS_write, fd, data, size);
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *data, size_t size, off64_t offset) { \
        int id = id_of(fd); \
        return id ? write_any(fd, data, size, offset, id) : syscall(SYS_pwrite64, fd, data, size, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define FTRUNCATE(name) \
    int name(int fd, off64_t size) { \
        int id = id_of(fd), done = -1; \
        if (!id) return (int)syscall(SYS_ftruncate, fd, size); \
        enter(); \
        if (!refuses()) done = (int)syscall(SYS_ftruncate, fd, size); \
        if (!done) record(NULL, 0, "T %d %lld\n", id, (long long)size); \
        leave(); \
        return done; \
    }
FTRUNCATE(ftruncate)
FTRUNCATE(ftruncate64)

/* A sync that fails leaves pages that Linux takes for clean: they are lost unless they are written again. */
static int sync_any(int fd, long number) {
    struct stat found;
    char link[64], path[PATH_MAX];
    int id = id_of(fd), done = 0;
    const char *folder = NULL;
    if (control && !id && !fstat(fd, &found) && S_ISDIR(found.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0) {
            path[length] = 0;
            folder = watched(path, NULL);
        }
    }
    if (!id && !folder) return (int)syscall(number, fd);
    enter();
    if (refuses()) done = -1;
    else if (!control->record) done = (int)syscall(number, fd);
    if (id) record(NULL, 0, "%c %d\n", done ? 'E' : 'S', id);
    else if (!done) record(NULL, 0, "D %s\n", folder);
    leave();
    return done;
}

int fsync(int fd) { return sync_any(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any(fd, SYS_fdatasync); }

static int name_any(char what, const char *path, long number, mode_t mode) {
    char space[PATH_MAX];
    const char *whole = watched(path, space);
    if (!whole) return (int)syscall(number, path, mode);
    enter();
    int done = (int)syscall(number, path, mode);
    if (!done) record(NULL, 0, "%c %s\n", what, whole);
    leave();
    return done;
}

int unlink(const char *path) { return name_any('U', path, SYS_unlink, 0); }
int mkdir(const char *path, mode_t mode) { return name_any('M', path, SYS_mkdir, mode); }
int rmdir(const char *path) { return name_any('X', path, SYS_rmdir, 0); }

int rename(const char *from, const char *to) {
    char one[PATH_MAX], two[PATH_MAX];
    const char *old = watched(from, one), *fresh = watched(to, two);
    if (!old && !fresh) return (int)syscall(SYS_rename, from, to);
    enter();
    int done = (int)syscall(SYS_rename, from, to);
    if (!done && old && fresh) record(NULL, 0, "R %s\n%s\n", old, fresh);
    else if (!done) record(NULL, 0, "X rename %s\n", old ? old : fresh);
    leave();
    return done;
}

/* What would change a file and is not understood. -shm is memory that SQLite makes anew after a crash. */
static void *mmap_any(void *at, size_t size, int protection, int flags, int fd, off64_t offset) {
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) && id_of(fd)) {
        char link[64], path[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length < 4 || strncmp(path + length - 4, "-shm", 4)) {
            enter();
            record(NULL, 0, "X mmap\n");
            leave();
        }
    }
    return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap_any(at, size, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t offset) {
    return mmap_any(at, size, protection, flags, fd, offset);
}

static void unknown(int fd, const char *name) {
    if (!id_of(fd)) return;
    enter();
    record(NULL, 0, "X %s\n", name);
    leave();
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    unknown(fd, "writev");
    return syscall(SYS_writev, fd, parts, count);
}
int fallocate(int fd, int mode, off_t offset, off_t size) {
    unknown(fd, "fallocate");
    return (int)syscall(SYS_fallocate, fd, mode, offset, size);
}
int posix_fallocate(int fd, off_t offset, off_t size) {
    unknown(fd, "posix_fallocate");
    return syscall(SYS_fallocate, fd, 0, offset, size) ? errno : 0;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    unknown(to, "sendfile");
    return syscall(SYS_sendfile, to, from, offset, size);
}
ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *offset, size_t size, unsigned flags) {
    unknown(to, "copy_file_range");
    return syscall(SYS_copy_file_range, from, start, to, offset, size, flags);
}
