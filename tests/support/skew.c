/*
 * Preload: this process sees another wall clock, off by what the file named by SKEW_FILE says.
 *
 * The file holds one native 64-bit integer: nanoseconds to add. It is mapped, not read, so a change
 * takes effect at the next look at the clock, and an ordinary look costs one addition. Only the wall
 * clock is moved: monotonic clocks, sleeps and timeouts stay true, as they do when an administrator or
 * NTP steps the clock of a machine.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

typedef int (*clock_function)(clockid_t, struct timespec *);

static clock_function true_clock;
static const volatile int64_t *offset; /* NULL: no skew */

__attribute__((constructor)) static void begin(void)
{
    true_clock = (clock_function)dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("SKEW_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED)
        offset = page;
}

int clock_gettime(clockid_t id, struct timespec *out)
{
    if (!true_clock) /* another library's constructor came before ours */
        true_clock = (clock_function)dlsym(RTLD_NEXT, "clock_gettime");
    int failed = true_clock(id, out);
    if (failed || !offset || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t moved = out->tv_sec * SECOND + out->tv_nsec + *offset;
    out->tv_sec = moved / SECOND;
    out->tv_nsec = moved % SECOND;
    return 0;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
