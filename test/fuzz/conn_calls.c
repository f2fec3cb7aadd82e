/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The input, and the C library's calls that wait, or may fail.
 */
#include "conn_stub.h"

#include <errno.h>
#include <string.h>

/* ---- the input --------------------------------------------------------- */

static const uint8_t *input;
static size_t left;

void conn_input(const uint8_t *data, size_t size)
{
    input = data;
    left = size;
}

size_t conn_left(void)
{
    return left;
}

uint8_t conn_byte(void)
{
    if (left == 0) {
        return 0;
    }
    left--;
    return *input++;
}

void conn_bytes(void *to, size_t n)
{
    uint8_t *p = to;

    while (n-- > 0) {
        *p++ = conn_byte();
    }
}

/* Two bits say from where and in what unit the rest counts. */
uint64_t conn_size(uint64_t most)
{
    uint8_t how = conn_byte();
    uint64_t n = how & 63;

    switch (how >> 6) {
    case 0:
        break;
    case 1:
        n = most > n ? most - n : 0;
        break;
    case 2:
        n = most / 63 * n + (n == 63 ? most % 63 : 0);
        break;
    default:
        n = n << 8 | conn_byte();
    }
    return n < most ? n : most;
}

/* ---- time, sleep, threads ---------------------------------------------- */

int64_t conn_clock;
void (*conn_sleep)(int64_t us);
void *(*conn_thread)(void *baton);
void *conn_thread_baton;

int conn_clock_gettime(clockid_t which, struct timespec *ts)
{
    (void)which;
    ts->tv_sec = (time_t)(conn_clock / 1000000);
    ts->tv_nsec = (long)(conn_clock % 1000000) * 1000;
    return 0;
}

int conn_poll(struct pollfd *fds, nfds_t n, int ms)
{
    conn_sleep(ms < 0 ? 1000000 : (int64_t)ms * 1000);
    return poll(fds, n, 0);
}

int conn_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts,
               const sigset_t *mask)
{
    (void)mask;
    conn_sleep((int64_t)ts->tv_sec * 1000000 + ts->tv_nsec / 1000);
    return poll(fds, n, 0);
}

int conn_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock,
                        const struct timespec *ts)
{
    int64_t until = (int64_t)ts->tv_sec * 1000000 + ts->tv_nsec / 1000;

    (void)cond;
    if (until <= conn_clock) {
        return ETIMEDOUT;
    }
    pthread_mutex_unlock(lock);
    conn_sleep(until - conn_clock);
    pthread_mutex_lock(lock);
    return until <= conn_clock ? ETIMEDOUT : 0;
}

int conn_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                        void *(*start)(void *), void *baton)
{
    (void)attr;
    *thread = pthread_self();
    conn_thread = start;
    conn_thread_baton = baton;
    return 0;
}

int conn_pthread_join(pthread_t thread, void **result)
{
    (void)thread;
    (void)result;
    return 0;
}

ssize_t conn_getrandom(void *buf, size_t n, unsigned flags)
{
    (void)flags;
    memset(buf, 7, n);
    return (ssize_t)n;
}

/* ---- failures ---------------------------------------------------------- */

static unsigned fails[CONN_FAILS];
int conn_has_failed;
int conn_keeps_refused;

void conn_fail(unsigned what, unsigned nth)
{
    fails[what] = nth;
}

void conn_calls_reset(void)
{
    memset(fails, 0, sizeof(fails));
    conn_has_failed = conn_keeps_refused = 0;
    conn_clock = 1000000000;
    conn_thread = NULL;
}

int conn_trip(unsigned what)
{
    if (fails[what] > 0 && --fails[what] == 0) {
        conn_has_failed = 1;
        errno = ENOMEM;
        return ENOMEM;
    }
    return 0;
}

void *conn_calloc(size_t n, size_t size)
{
    return conn_trip(CONN_FAIL_CALLOC) ? NULL : calloc(n, size);
}
