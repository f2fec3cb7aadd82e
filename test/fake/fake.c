/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "fake_private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ROUTES   64
#define PATIENCE 5 /* seconds for an ack */

fake_world fake = {.lock = PTHREAD_MUTEX_INITIALIZER,
                   .work = PTHREAD_COND_INITIALIZER,
                   .acked = PTHREAD_COND_INITIALIZER,
                   .settled = PTHREAD_COND_INITIALIZER};

static uint64_t seed;
static struct {
    uint16_t port;
    fake_route route;
    unsigned connects;
} routes[ROUTES];

/* The call that is to fail; under a lock of its own. */
static struct {
    pthread_mutex_t lock;
    const char *function; /* NULL: none */
    unsigned left;
    int error;
    void (*act)(void *baton); /* NULL: nothing */
    void *baton;
    int hit;
    const char *held; /* NULL: none */
    unsigned nheld;
    pthread_cond_t changed;
} trip = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .changed = PTHREAD_COND_INITIALIZER};
static __thread int spared;

void fake_lock(void)
{
    pthread_mutex_lock(&fake.lock);
}

void fake_unlock(void)
{
    pthread_mutex_unlock(&fake.lock);
}

void fake_work(void)
{
    fake.idle = 0;
    pthread_cond_signal(&fake.work);
}

unsigned fake_random(unsigned below)
{
    fake.rng ^= fake.rng << 13; /* xorshift64 */
    fake.rng ^= fake.rng >> 7;
    fake.rng ^= fake.rng << 17;
    return (unsigned)(fake.rng >> 20) % below;
}

unsigned fake_pick(unsigned below)
{
    unsigned n;

    fake_lock();
    n = fake_random(below);
    fake_unlock();
    return n;
}

void fake_fault(const char *fmt, ...)
{
    va_list ap;

    fprintf(stderr, "fake (seed %llu): ", (unsigned long long)seed);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    abort();
}

/* ---- start and stop ---------------------------------------------------- */

void fake_seed(void)
{
    const char *given = getenv("FAKE_SEED");
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    seed = given ? strtoull(given, NULL, 10)
                 : (uint64_t)(ts.tv_nsec / 1000 + ts.tv_sec) % 1000000;
    printf("FAKE_SEED=%llu\n", (unsigned long long)seed);
    fflush(stdout);
}

unsigned fake_seed_modulo(unsigned n)
{
    return (unsigned)(seed % n);
}

void fake_start(void)
{
    sigset_t all;
    sigset_t old;

    fake.rng = (seed + 1) * 0x9e3779b97f4a7c15u;
    fake.like_rxe = (int)(seed & 1);
    fake.quit = fake.idle = 0;
    fake.memlock = 0;
    fake.refuse_dead_posts = 0;
    memset(routes, 0, sizeof(routes));
    fake_context.cmd_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    fake_context.async_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&fake.wire, NULL, fake_wire_main, NULL)) {
        fake_fault("no thread");
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    fake.running = 1;
}

unsigned fake_open_objects(void)
{
    unsigned n;

    fake_lock();
    n = fake.pds + fake.nmrs + fake.cqs + fake.comps + fake.nqps + fake.nids
        + fake.channels;
    if (n) {
        fprintf(stderr,
                "fake: open: %u PDs, %u MRs, %u CQs, %u completion channels, "
                "%u QPs, %u ids, %u event channels\n",
                fake.pds, fake.nmrs, fake.cqs, fake.comps, fake.nqps, fake.nids,
                fake.channels);
    }
    fake_unlock();
    return n;
}

unsigned fake_stop(void)
{
    if (fake.running) {
        fake_lock();
        fake.quit = 1;
        fake_work();
        fake_unlock();
        pthread_join(fake.wire, NULL);
        fake.running = 0;
        close(fake_context.cmd_fd);
        close(fake_context.async_fd);
    }
    return fake_open_objects();
}

void fake_settle(void)
{
    fake_lock();
    while (!fake.idle) {
        pthread_cond_wait(&fake.settled, &fake.lock);
    }
    fake_unlock();
}

/* ---- memory ------------------------------------------------------------ */

size_t fake_registered(void)
{
    size_t n;

    fake_lock();
    n = fake.registered;
    fake_unlock();
    return n;
}

void fake_memlock(size_t bytes)
{
    fake_lock();
    fake.memlock = bytes;
    fake_unlock();
}

/* ---- connects ---------------------------------------------------------- */

/* [locked] The entry of a port: its index. */
static unsigned route_entry(uint16_t port)
{
    unsigned i = 0;

    while (i < ROUTES && routes[i].port && routes[i].port != port) {
        i++;
    }
    if (i == ROUTES) {
        fake_fault("more than %d ports", ROUTES);
    }
    routes[i].port = port;
    return i;
}

void fake_route_to(uint16_t port, fake_route route)
{
    fake_lock();
    routes[route_entry(port)].route = route;
    fake_unlock();
}

fake_route fake_route_of(uint16_t port, int count)
{
    unsigned i = route_entry(port);

    routes[i].connects += count != 0;
    return routes[i].route;
}

unsigned fake_connects(uint16_t port)
{
    unsigned n;

    fake_lock();
    n = routes[route_entry(port)].connects;
    fake_unlock();
    return n;
}

/* ---- trouble ----------------------------------------------------------- */

void fake_freeze(struct rdma_cm_id *id, int on)
{
    fake_lock();
    ((fake_id *)id)->frozen = on;
    fake_work();
    fake_unlock();
}

void fake_let_land(struct rdma_cm_id *id, unsigned n)
{
    fake_lock();
    ((fake_id *)id)->lands += n;
    fake_work();
    fake_unlock();
}

void fake_thaw_at_arm(struct rdma_cm_id *id)
{
    fake_lock();
    ((fake_id *)id)->thaw_at_arm = 1;
    fake_unlock();
}

unsigned fake_stuck(struct rdma_cm_id *id)
{
    const fake_id *peer;
    const fake_wr *w;
    unsigned on_wire = 0;
    unsigned stuck = 0;

    fake_lock();
    peer = ((fake_id *)id)->peer;
    w = peer && peer->id.qp ? ((fake_qp *)peer->id.qp)->first : NULL;
    for (; w; w = w->next) {
        on_wire += w->sent && !w->landed;
        if (w->opcode == IBV_WR_RDMA_WRITE) {
            stuck += w->sent ? !w->done : on_wire >= FAKE_WIRE;
        }
    }
    fake_unlock();
    return stuck;
}

void fake_kill(struct rdma_cm_id *id)
{
    fake_lock();
    fake_cut((fake_id *)id, 1, 1);
    fake_unlock();
}

int fake_is_let_go_of(void)
{
    return (fcntl(fake_context.cmd_fd, F_GETFL) & O_PATH)
           && (fcntl(fake_context.async_fd, F_GETFL) & O_PATH);
}

void fake_refuse_dead_posts(int on)
{
    fake_lock();
    fake.refuse_dead_posts = on;
    fake_unlock();
}

void fake_fail(const char *function, unsigned nth, int error)
{
    fake_meet(function, nth, error, NULL, NULL);
}

void fake_meet(const char *function, unsigned nth, int error,
               void (*act)(void *baton), void *baton)
{
    pthread_mutex_lock(&trip.lock);
    trip.function = function;
    trip.left = nth;
    trip.error = error;
    trip.act = act;
    trip.baton = baton;
    trip.hit = 0;
    pthread_mutex_unlock(&trip.lock);
}

int fake_met(void)
{
    int hit;

    pthread_mutex_lock(&trip.lock);
    hit = trip.hit;
    pthread_mutex_unlock(&trip.lock);
    return hit;
}

int fake_failed(void)
{
    int hit;

    pthread_mutex_lock(&trip.lock);
    hit = trip.hit;
    trip.function = NULL;
    trip.hit = 0;
    pthread_mutex_unlock(&trip.lock);
    return hit;
}

void fake_hold(const char *function)
{
    pthread_mutex_lock(&trip.lock);
    trip.held = function;
    pthread_cond_broadcast(&trip.changed);
    pthread_mutex_unlock(&trip.lock);
}

void fake_await_held(void)
{
    pthread_mutex_lock(&trip.lock);
    while (trip.nheld == 0) {
        pthread_cond_wait(&trip.changed, &trip.lock);
    }
    pthread_mutex_unlock(&trip.lock);
}

int fake_trip(const char *function)
{
    void (*act)(void *baton) = NULL;
    void *baton = NULL;
    int error = 0;

    if (spared) {
        return 0;
    }
    pthread_mutex_lock(&trip.lock);
    while (trip.held && strcmp(trip.held, function) == 0) {
        trip.nheld++;
        pthread_cond_broadcast(&trip.changed);
        pthread_cond_wait(&trip.changed, &trip.lock);
        trip.nheld--;
    }
    if (trip.function && trip.left > 0 && strcmp(trip.function, function) == 0
        && --trip.left == 0) {
        error = trip.error;
        act = trip.act;
        baton = trip.baton;
        trip.hit = !act;
    }
    pthread_mutex_unlock(&trip.lock);
    if (act) {
        act(baton);
        pthread_mutex_lock(&trip.lock);
        trip.hit = 1;
        pthread_mutex_unlock(&trip.lock);
    }
    return error;
}

void *fake_calloc(size_t n, size_t size)
{
    int error = fake_trip("calloc");

    if (error) {
        errno = error;
        return NULL;
    }
    return calloc(n, size);
}

int fake_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                        void *(*start)(void *), void *baton)
{
    int error = fake_trip("pthread_create");

    return error ? error : pthread_create(thread, attr, start, baton);
}

int fake_eventfd(unsigned initial, int flags)
{
    int error = fake_trip("eventfd");

    if (error) {
        errno = error;
        return -1;
    }
    return eventfd(initial, flags);
}

/* As the engine calls it: with an int, or with nothing, which F_GETFL ignores. */
int fake_fcntl(int fd, int command, ...)
{
    int error = fake_trip("fcntl");
    int arg = 0;
    va_list ap;

    if (error) {
        errno = error;
        return -1;
    }
    if (command != F_GETFL) {
        va_start(ap, command);
        arg = va_arg(ap, int);
        va_end(ap);
    }
    return fcntl(fd, command, arg);
}

void *fake_mmap(void *addr, size_t len, int prot, int flags, int fd,
                off_t offset)
{
    int error = fake_trip("mmap");

    if (error) {
        errno = error;
        return MAP_FAILED;
    }
    return mmap(addr, len, prot, flags, fd, offset);
}

apr_status_t fake_apr_pool_create(apr_pool_t **out, apr_abortfunc_t abort,
                                  apr_allocator_t *allocator)
{
    int error = fake_trip("apr_pool_create");

    return error ? error : apr_pool_create_unmanaged_ex(out, abort, allocator);
}

void fake_spare_this_thread(int on)
{
    spared = on;
}

/* ---- for the other files ----------------------------------------------- */

int fake_wait_acked(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec += PATIENCE;
    return pthread_cond_timedwait(&fake.acked, &fake.lock, &ts) ? -1 : 0;
}

int fake_fd_make(void)
{
    return eventfd(0, EFD_CLOEXEC);
}

/* Readable is a counter that is not 0; set in the lock, so it never blocks. */
void fake_fd_set(int fd, int on)
{
    struct pollfd p = {fd, POLLIN, 0};
    uint64_t n = 1;
    int is = poll(&p, 1, 0) == 1;

    if ((on && !is && write(fd, &n, sizeof(n)) < 0)
        || (!on && is && read(fd, &n, sizeof(n)) < 0)) {
        fake_fault("eventfd: %s", strerror(errno));
    }
}

int fake_fd_wait(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};

    if (fcntl(fd, F_GETFL) & O_NONBLOCK) {
        return 0;
    }
    return poll(&p, 1, -1) >= 0 || errno == EINTR;
}
