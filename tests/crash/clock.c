/* A wall clock that a test sets, for LD_PRELOAD: time moves as it does, from where the shared page says.
 *
 * Monotonic clocks stay as they are. adjtimex() answers what the page says, as the kernel does where time is kept by
 * NTP (TIME_OK), where nothing keeps it (TIME_ERROR), and around a leap second (TIME_INS, TIME_OOP, TIME_WAIT).
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t offset_ns; /* added to wall time */
    int64_t state;     /* what adjtimex() answers */
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    const char *page = getenv("LISIERE_CLOCK_CONTROL");
    int fd = page ? open(page, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *shared = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (shared != MAP_FAILED) control = shared;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, which, now);
    if (!done && control && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        int64_t ns = now->tv_sec * 1000000000LL + now->tv_nsec + control->offset_ns;
        int64_t part = ((ns % 1000000000LL) + 1000000000LL) % 1000000000LL;
        now->tv_sec = (ns - part) / 1000000000LL;
        now->tv_nsec = part;
    }
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (into) *into = fine.tv_sec;
    return fine.tv_sec;
}

int adjtimex(struct timex *asked) {
    int state = (int)syscall(SYS_adjtimex, asked);
    return control && state >= 0 ? (int)control->state : state;
}
