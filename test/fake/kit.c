/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "kit.h"

#include <apr_general.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../rdma_body_private.h"
#include "../../rdma_cache_private.h"
#include "../../rdma_conn_private.h"

#define GLANCE (5 * KIT_MS) /* between two looks at what nobody signals */

kit_server kit;

/* ---- before and after a test ------------------------------------------- */

static void log_line(void *baton, int level, int id, const char *line)
{
    static int loud = -1;

    (void)baton;
    __atomic_add_fetch(&kit.logged[id], 1, __ATOMIC_RELAXED);
    if (strstr(line, "> PONG")) {
        __atomic_add_fetch(&kit.pongs, 1, __ATOMIC_RELAXED);
    }
    if (__atomic_load_n(&loud, __ATOMIC_RELAXED) < 0) {
        __atomic_store_n(&loud, getenv("KIT_LOG") != NULL, __ATOMIC_RELAXED);
    }
    if (__atomic_load_n(&loud, __ATOMIC_RELAXED)) {
        fprintf(stderr, "%lld.%03d <%d> RDMA%04d %s\n",
                (long long)(rdma_conn_now() / KIT_SECOND),
                (int)(rdma_conn_now() / KIT_MS % 1000), level, id, line);
    }
}

void kit_setup(void)
{
    fake_start();
    ck_assert_int_eq(apr_initialize(), APR_SUCCESS);
    kit.conf = (rdma_cache_conf){.memory = 8 * 1024 * 1024,
                                 .connect_timeout = 5 * KIT_SECOND,
                                 .timeout = 5 * KIT_SECOND,
                                 .lease_timeout = 5 * KIT_SECOND,
                                 .idle_timeout = 60 * KIT_SECOND,
                                 .max_streams = 32,
                                 .max_connections = 32,
                                 .max_connections_per_client = 8,
                                 .log = log_line};
}

void kit_go(void)
{
    ck_assert_int_eq(rdma_cache_create(&kit.conf, &kit.cache), APR_SUCCESS);
}

void kit_be_patient(void)
{
    rdma_cache *cache = kit.cache;
    rdma_cache_slot *s;

    pthread_mutex_lock(&cache->lock);
    cache->conf.timeout = cache->conf.lease_timeout = KIT_PATIENT;
    for (s = cache->slots; s; s = s->next) {
        if (s->state == READY) {
            rdma_conn_lock(s->conn);
            s->set->conf.timeout = s->set->conf.lease_timeout = KIT_PATIENT;
            rdma_conn_unlock(s->conn);
        }
    }
    pthread_mutex_unlock(&cache->lock);
}

void kit_stop(void)
{
    rdma_cache_stopping(kit.cache, 0);
    ck_assert_int_eq(rdma_cache_stop(kit.cache, NULL), 0);
    kit.cache = NULL;
}

uint64_t kit_count(rdma_count_id id)
{
    return __atomic_load_n(&rdma_count_here->of[id], __ATOMIC_RELAXED);
}

static uint64_t sum(rdma_count_id first, rdma_count_id last)
{
    uint64_t n = 0;
    int id;

    for (id = (int)first; id <= (int)last; id++) {
        n += kit_count((rdma_count_id)id);
    }
    return n;
}

/* Whatever has been done in this process: what began has ended, for one reason,
 * and nothing is held. */
static void check_counts(void)
{
    int id;

    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsMade),
                      sum(RDMA_COUNT_ConnectionsClosedIdle,
                          RDMA_COUNT_ConnectionsClosedStopping));
    ck_assert_uint_eq(kit_count(RDMA_COUNT_LeasesGranted),
                      sum(RDMA_COUNT_LeasesDone, RDMA_COUNT_LeasesAborted));
    for (id = 0; id < RDMA_COUNT_N; id++) {
        if (rdma_count_infos[id].kind == RDMA_COUNT_GAUGE) {
            ck_assert_msg(kit_count((rdma_count_id)id) == 0, "%s is left",
                          rdma_count_infos[id].name);
        }
    }
}

void kit_teardown(void)
{
    if (kit.cache) {
        kit_stop();
    }
    check_counts();
    while (kit.nclients > 0) {
        kit_client_free(kit.clients[--kit.nclients]);
    }
    kit_close_book();
    apr_terminate();
    ck_assert_uint_eq(fake_stop(), 0);
    ck_assert_uint_eq(fake_registered(), 0);
}

kit_client *kit_client_new(const char *addr)
{
    ck_assert_uint_lt(kit.nclients, KIT_CLIENTS);
    return kit.clients[kit.nclients++] = kit_client_make(addr);
}

TCase *kit_group(Suite *s, const char *name)
{
    return common_group(s, name, kit_setup, kit_teardown);
}

/* ---- content ----------------------------------------------------------- */

/* Every word of 8 bytes is its own offset, xor what the id makes of it. */
static void put_body(char *to, uint64_t from, size_t n, uint32_t id)
{
    uint64_t key = id * 0x9e3779b97f4a7c15u;
    size_t i;

    for (i = 0; i < n; i++) {
        uint64_t at = from + i;

        to[i] = (char)(((at & ~(uint64_t)7) ^ key) >> (8 * (at & 7)));
    }
}

int kit_piece_is_right(const kit_work *w, uint64_t from, size_t n,
                       const char *at)
{
    char want[4096];
    size_t done;

    for (done = 0; done < n; done += sizeof(want)) {
        size_t len = n - done < sizeof(want) ? n - done : sizeof(want);

        put_body(want, from + done, len, w->id);
        if (memcmp(want, at + done, len)) {
            return 0;
        }
    }
    return 1;
}

int kit_body_is_right(const kit_work *w)
{
    const rdma_mem_region *r =
        w->kind == RDMA_HDR_WRITE ? &w->client->window : &w->client->sink;

    return kit_piece_is_right(w, 0, (size_t)w->total, r->base + w->at);
}

/* ---- a request --------------------------------------------------------- */

kit_work kit_request(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                     uint64_t total)
{
    return (kit_work){.client = c,
                      .kind = kind,
                      .id = id,
                      .total = total,
                      .stag = c->window.mr->rkey,
                      .window = KIT_WINDOW};
}

static int failed(kit_work *w, const char *step)
{
    w->step = step;
    if (w->slot) {
        rdma_cache_release(w->slot);
        w->slot = NULL;
    }
    return -1;
}

rdma_cache_target kit_target(const kit_client *c, rdma_hdr_kind kind)
{
    rdma_cache_target t = {.kind = kind};

    memcpy(&t.remote, &c->addr, sizeof(c->addr));
    t.local.ss_family = AF_INET;
    memcpy(t.token, c->token, sizeof(t.token));
    return t;
}

int kit_begin(kit_work *w)
{
    rdma_cache_target t = kit_target(w->client, w->kind);

    w->step = NULL;
    w->slot = rdma_cache_acquire(kit.cache, &t, &w->why);
    if (!w->slot) {
        return failed(w, "acquire");
    }
    w->why = rdma_cache_wait(w->slot, &w->set);
    if (w->why != RDMA_HDR_NOT_DECLINED) {
        return failed(w, "wait");
    }
    if (!rdma_cache_use_id(w->slot, w->id, &w->conn)) {
        return failed(w, "use_id");
    }
    return 0;
}

/* The client has it, by TCP. */
static void send_head(kit_work *w, const rdma_hdr_response *head)
{
    if (head->kind == RDMA_HDR_READ) {
        kit_lend(w->client, w->id, head->len, head->stag, head->to,
                 (size_t)head->len);
    }
    pthread_mutex_lock(&w->client->lock);
    w->head = *head;
    w->headed = 1;
    pthread_cond_broadcast(&w->client->changed);
    pthread_mutex_unlock(&w->client->lock);
}

static void send_stream_head(kit_work *w)
{
    rdma_hdr_response head;

    if (rdma_body_head(w->body, &head)) {
        ck_assert(!w->headed);
        send_head(w, &head);
    }
}

int kit_open(kit_work *w)
{
    rdma_hdr_request req = {.id = w->id,
                            .stag = w->stag,
                            .to = (uintptr_t)w->client->window.base + w->at,
                            .len = w->window};

    w->why = rdma_body_open(w->set, &req,
                            w->unknown ? RDMA_BODY_UNKNOWN : w->total,
                            w->stream, &w->body);
    if (w->why != RDMA_HDR_NOT_DECLINED) {
        return failed(w, "open");
    }
    send_stream_head(w);
    return 0;
}

void kit_abandon(kit_work *w, rdma_hdr_abort why)
{
    w->conn = rdma_body_abandon(w->body, why);
    w->body = NULL;
    rdma_cache_release(w->slot);
    w->slot = NULL;
}

static int trouble(kit_work *w, const char *step)
{
    kit_abandon(w, RDMA_HDR_ABORT_UNSPECIFIED);
    return failed(w, step);
}

int kit_fill(kit_work *w, uint64_t bytes)
{
    uint64_t end = w->filled + bytes;

    while (w->filled < end) {
        size_t room;
        char *at = rdma_body_space(w->body, &room);

        if (!at) {
            return trouble(w, "space");
        }
        kit_check_is_free(at, room);
        if (room > end - w->filled) {
            room = (size_t)(end - w->filled);
        }
        put_body(at, w->filled, room, w->id);
        w->filled += room;
        if (rdma_body_commit(w->body, room)) {
            return trouble(w, "commit");
        }
        send_stream_head(w);
    }
    return 0;
}

int kit_flush(kit_work *w)
{
    if (rdma_body_flush(w->body)) {
        return trouble(w, "flush");
    }
    send_stream_head(w);
    return 0;
}

int kit_finish(kit_work *w)
{
    rdma_hdr_response head;

    if (rdma_body_finish(w->body, &head)) {
        return trouble(w, "finish");
    }
    if (!w->headed) {
        send_head(w, &head);
    }
    rdma_cache_release(w->slot);
    w->slot = NULL;
    w->body = NULL;
    return 0;
}

/* Open it is: the rest, with its pauses. */
static int go_on(kit_work *w)
{
    int rc = 0;

    while (!rc && w->filled < w->total) {
        uint64_t left = w->total - w->filled;
        uint64_t n = w->pause && w->pause < left ? w->pause : left;

        rc = kit_fill(w, n) || (w->pause && kit_flush(w));
    }
    return rc || kit_finish(w) ? -1 : 0;
}

static void is_over(kit_work *w)
{
    pthread_mutex_lock(&w->client->lock);
    w->over = 1;
    pthread_cond_broadcast(&w->client->changed);
    pthread_mutex_unlock(&w->client->lock);
}

int kit_serve(kit_work *w)
{
    int rc = kit_begin(w) || kit_open(w) || go_on(w) ? -1 : 0;

    is_over(w);
    return rc;
}

void *kit_go_on_thread(void *work)
{
    go_on(work);
    is_over(work);
    return NULL;
}

void *kit_serve_thread(void *work)
{
    kit_serve(work);
    return NULL;
}

void kit_take(kit_work *w)
{
    char field[RDMA_HDR_FORMAT_MAX];
    kit_conn *k;

    ck_assert_msg(w->step == NULL, "id %u: %s has failed (%d)", w->id, w->step,
                  (int)w->why);
    k = kit_client_conn(w->client, w->head.conn - 1);
    ck_assert_int_eq(rdma_hdr_format_response(&w->head, field, sizeof(field)),
                     RDMA_HDR_OK);
    ck_assert_uint_eq(w->head.id, w->id);
    ck_assert_int_eq(w->head.kind, w->kind);
    if (w->kind == RDMA_HDR_WRITE) {
        ck_assert(w->head.has_total && w->head.total == w->total);
        ck_assert_uint_eq(kit_await_fin(w->client, w->id).written, w->total);
    }
    else {
        ck_assert(w->head.fin && w->head.len == w->total);
        ck_assert_int_eq(kit_read(k, &w->head, w->at), 0);
    }
    ck_assert(kit_body_is_right(w));
    if (w->kind == RDMA_HDR_READ) {
        kit_say(k, RDMA_HDR_CONSUMED, w->id, w->total, RDMA_HDR_FIN);
    }
}

/* ---- waiting for the server -------------------------------------------- */

/* [cache locked] */
static unsigned live_bodies(void)
{
    rdma_cache_slot *s;
    unsigned live = 0;

    for (s = kit.cache->slots; s; s = s->next) {
        if (s->state == READY) {
            rdma_conn_lock(s->conn);
            live += rdma_body_set_live(s->set);
            rdma_conn_unlock(s->conn);
        }
    }
    return live;
}

static unsigned count_slots(void)
{
    const rdma_cache_slot *s;
    unsigned n = 0;

    for (s = kit.cache->slots; s; s = s->next) {
        n++;
    }
    return n;
}

static void await(unsigned (*number)(void), unsigned wanted, const char *what)
{
    rdma_cache *cache = kit.cache;
    rdma_conn_time until = rdma_conn_now() + KIT_PATIENT;
    unsigned is;

    pthread_mutex_lock(&cache->lock);
    while ((is = number()) != wanted) {
        rdma_conn_time next = rdma_conn_now() + GLANCE;
        struct timespec ts = {(time_t)(next / 1000000),
                              (long)(next % 1000000) * 1000};

        ck_assert_msg(next < until, "%u %s instead of %u", is, what, wanted);
        pthread_cond_timedwait(&cache->changed, &cache->lock, &ts);
    }
    pthread_mutex_unlock(&cache->lock);
}

static unsigned count_devices(void)
{
    rdma_cache *cache = kit.cache;
    unsigned n = 0;
    unsigned i;

    pthread_mutex_lock(&cache->device_lock);
    for (i = 0; i < RDMA_CACHE_DEVICES; i++) {
        n += cache->devices[i].context != NULL;
    }
    pthread_mutex_unlock(&cache->device_lock);
    return n;
}

void kit_await_no_devices(void)
{
    await(count_devices, 0, "devices");
}

void kit_await_slots(unsigned n)
{
    await(count_slots, n, "slots");
}

void kit_await_no_bodies(void)
{
    await(live_bodies, 0, "open ids");
}

unsigned kit_used(void)
{
    rdma_mem_usage usage;

    rdma_mem_usage_get(kit.cache->mem, &usage);
    return (unsigned)usage.used;
}

void kit_await_used(unsigned bytes)
{
    await(kit_used, bytes, "bytes in use");
}

/* Free blocks: take all, give them back. */
static unsigned free_blocks(void)
{
    rdma_mem_pool *pool = kit.cache->devices[0].pool;
    char *blocks[1024];
    unsigned i;
    unsigned n = 0;

    while (n < 1024 && rdma_mem_pool_take(pool, 1, &blocks[n]) == 0) {
        kit_check_is_free(blocks[n++], RDMA_MEM_BLOCK);
    }
    for (i = 0; i < n; i++) {
        rdma_mem_pool_give(pool, blocks[i]);
    }
    return n;
}

void kit_await_all_blocks(void)
{
    const rdma_mem_pool *pool = kit.cache->devices[0].pool;

    await(free_blocks, (unsigned)(rdma_mem_pool_bytes(pool) / RDMA_MEM_BLOCK),
          "free blocks");
}

/* [cache locked] */
static unsigned sleepers(void)
{
    rdma_conn *c = kit.cache->slots->conn;
    unsigned n;

    rdma_conn_lock(c);
    n = c->leader != 0;
    rdma_conn_unlock(c);
    return n;
}

void kit_await_sleeper(void)
{
    await(sleepers, 1, "sleeping workers");
}

void kit_rouse_sleeper(void)
{
    rdma_conn *c;

    pthread_mutex_lock(&kit.cache->lock);
    c = kit.cache->slots->conn;
    rdma_conn_lock(c);
    rdma_conn_wake(c);
    rdma_conn_unlock(c);
    pthread_mutex_unlock(&kit.cache->lock);
}

/* [cache locked] */
static endpoint *endpoint_of(const kit_client *c)
{
    endpoint *ep = APR_RING_FIRST(&kit.cache->all_endpoints);

    while (memcmp(ep->key.token, c->token, sizeof(c->token))) {
        ep = APR_RING_NEXT(ep, link);
        ck_assert(ep != APR_RING_SENTINEL(&kit.cache->all_endpoints, endpoint,
                                          link));
    }
    return ep;
}

rdma_conn_time kit_backed_off(kit_client *c, rdma_hdr_kind kind)
{
    rdma_conn_time left;

    pthread_mutex_lock(&kit.cache->lock);
    left = endpoint_of(c)->retry_at[kind - 1u] - rdma_conn_now();
    pthread_mutex_unlock(&kit.cache->lock);
    return left;
}

int kit_is_suspect(kit_client *c)
{
    int suspect;

    pthread_mutex_lock(&kit.cache->lock);
    suspect = endpoint_of(c)->client->suspect;
    pthread_mutex_unlock(&kit.cache->lock);
    return suspect;
}

void kit_age_back_off(kit_client *c, rdma_hdr_kind kind)
{
    pthread_mutex_lock(&kit.cache->lock);
    endpoint_of(c)->retry_at[kind - 1u] = 0;
    pthread_mutex_unlock(&kit.cache->lock);
}

void kit_break_channel(void)
{
    int fds[2];

    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds),
                     0);
    ck_assert_int_ge(dup2(fds[0], kit.cache->devices[0].channel->fd), 0);
    close(fds[0]);
    close(fds[1]); /* the other end: POLLHUP */
    rdma_cache_wake(kit.cache);
}

void kit_end_pause(void)
{
    pthread_mutex_lock(&kit.cache->lock);
    kit.cache->retry_at = 0;
    pthread_mutex_unlock(&kit.cache->lock);
}

/* A thread of its own, as it would be: who tests may take other locks. */
static struct {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int on, held;
} brake = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .changed = PTHREAD_COND_INITIALIZER};

static void *hold_progress(void *arg)
{
    pthread_mutex_lock(&kit.cache->device_lock);
    pthread_mutex_lock(&brake.lock);
    brake.held = 1;
    pthread_cond_broadcast(&brake.changed);
    while (brake.on) {
        pthread_cond_wait(&brake.changed, &brake.lock);
    }
    brake.held = 0;
    pthread_mutex_unlock(&brake.lock);
    pthread_mutex_unlock(&kit.cache->device_lock);
    return arg;
}

void kit_stop_progress(int on)
{
    pthread_mutex_lock(&brake.lock);
    brake.on = on;
    pthread_cond_broadcast(&brake.changed);
    pthread_mutex_unlock(&brake.lock);
    if (!on) {
        pthread_join(brake.thread, NULL);
        return;
    }
    ck_assert_int_eq(pthread_create(&brake.thread, NULL, hold_progress, NULL),
                     0);
    pthread_mutex_lock(&brake.lock);
    while (!brake.held) {
        pthread_cond_wait(&brake.changed, &brake.lock);
    }
    pthread_mutex_unlock(&brake.lock);
    rdma_cache_wake(kit.cache);
}

void kit_age(rdma_conn_time by)
{
    rdma_cache_slot *s;

    pthread_mutex_lock(&kit.cache->lock);
    for (s = kit.cache->slots; s; s = s->next) {
        if (s->state == READY) {
            rdma_conn_lock(s->conn);
            s->conn->heard -= by;
            rdma_conn_unlock(s->conn);
        }
    }
    pthread_mutex_unlock(&kit.cache->lock);
}
