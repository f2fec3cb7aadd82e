/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "client_kit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CONTENT 0x5a /* of all bodies */

struct lib lib;

/* ---- the server -------------------------------------------------------- */

/* The client waits for our last word after its ABORT; a second one does no
 * harm. */
static int on_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    rdma_hdr_msg answer = {.type = RDMA_HDR_ABORT, .id = m->id};

    (void)baton;
    if (m->type == RDMA_HDR_ABORT) {
        rdma_conn_say(c, &answer, NULL);
    }
    return 0;
}

static void on_closed(void *baton, rdma_conn *c)
{
    (void)baton;
    (void)c;
}

static const rdma_conn_handler handler = {.message = on_message,
                                          .closed = on_closed};

static struct ibv_pd *domain(void *baton, struct rdma_cm_id *id)
{
    lib_server *s = baton;

    s->pd = ibv_alloc_pd(id->verbs);
    return s->pd;
}

static struct ibv_comp_channel *channel(void *baton, struct rdma_cm_id *id)
{
    lib_server *s = baton;

    s->channel = ibv_create_comp_channel(id->verbs);
    ck_assert_int_eq(fcntl(s->channel->fd, F_SETFL, O_NONBLOCK), 0);
    return s->channel;
}

static void *pump(void *arg)
{
    lib_server *s = arg;
    struct pollfd fds[3] = {{s->events->fd, POLLIN, 0},
                            {s->channel->fd, POLLIN, 0},
                            {s->wake_fd, POLLIN, 0}};
    struct rdma_cm_event *event;
    struct ibv_cq *cq;
    void *c;

    fake_spare_this_thread(1);
    while (!__atomic_load_n(&s->quit, __ATOMIC_ACQUIRE)) {
        poll(fds, 3, -1);
        while (rdma_get_cm_event(s->events, &event) == 0) {
            enum rdma_cm_event_type type = event->event;

            rdma_ack_cm_event(event);
            rdma_conn_event(s->conn, type, 0);
        }
        while (!__atomic_load_n(&s->deaf, __ATOMIC_ACQUIRE)
               && ibv_get_cq_event(s->channel, &cq, &c) == 0) {
            rdma_conn_receive(c);
            ibv_ack_cq_events(cq, 1);
        }
    }
    return NULL;
}

int lib_dial(lib_server *s, rdma_hdr_kind kind)
{
    rdma_conn_conf c = {.kind = kind,
                        .domain = domain,
                        .channel = channel,
                        .handler = &handler,
                        .baton = s};
    rdma_conn_target to = {.deadline = rdma_conn_now() + LIB_PATIENT};
    struct sockaddr_in *local = (struct sockaddr_in *)&to.local;
    struct sockaddr_in *remote = (struct sockaddr_in *)&to.remote;
    int rc;

    s->mem = c.mem = rdma_mem_create(SIZE_MAX);
    s->events = rdma_create_event_channel();
    ck_assert_int_eq(fcntl(s->events->fd, F_SETFL, O_NONBLOCK), 0);
    s->wake_fd = eventfd(0, EFD_NONBLOCK);
    local->sin_family = remote->sin_family = AF_INET;
    inet_pton(AF_INET, s->from ? s->from : "192.0.2.1", &local->sin_addr);
    inet_pton(AF_INET, "192.0.2.2", &remote->sin_addr);
    remote->sin_port = htons(lib.ep->port);
    memcpy(to.token, lib.ep->token, sizeof(to.token));
    to.token[RDMA_HDR_TOKEN_LEN - 1] ^= s->twist;
    rc = rdma_conn_connect(&c, &to, s->events, &s->conn, &s->why);
    if (rc == 0) {
        ck_assert_int_eq(
            rdma_mem_map(s->mem, s->pd, LIB_BODY,
                         IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ,
                         &s->body),
            0);
        memset(s->body.base, CONTENT, LIB_BODY);
        ck_assert_int_eq(pthread_create(&s->thread, NULL, pump, s), 0);
        s->has_thread = 1;
    }
    return rc;
}

void lib_hang_up(lib_server *s)
{
    rdma_conn_lock(s->conn);
    rdma_conn_close(s->conn, RDMA_CONN_CAUSE_LOCAL);
    rdma_conn_unlock(s->conn);
}

void lib_server_free(lib_server *s)
{
    uint64_t one = 1;

    if (s->has_thread) {
        __atomic_store_n(&s->quit, 1, __ATOMIC_RELEASE);
        ck_assert(write(s->wake_fd, &one, sizeof(one)) == sizeof(one));
        pthread_join(s->thread, NULL);
        rdma_conn_destroy(s->conn, NULL, NULL);
        rdma_mem_unmap(s->mem, &s->body);
    }
    if (s->channel) {
        ibv_destroy_comp_channel(s->channel);
    }
    if (s->pd) {
        ibv_dealloc_pd(s->pd);
    }
    if (s->events) {
        rdma_destroy_event_channel(s->events);
        rdma_mem_destroy(s->mem);
        close(s->wake_fd);
    }
    memset(s, 0, sizeof(*s));
}

void lib_say(lib_server *s, rdma_hdr_type type, uint32_t id, uint64_t bytes,
             unsigned flags)
{
    rdma_hdr_msg m = {
        .type = type, .id = id, .bytes = bytes, .flags = (uint8_t)flags};
    int rc;

    rdma_conn_lock(s->conn);
    rc = rdma_conn_say(s->conn, &m, NULL);
    rdma_conn_unlock(s->conn);
    ck_assert(rc == 0 || rc == ENOTCONN);
}

static void written(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    (void)c;
    (void)ok;
    free(wr);
}

void lib_write_body(lib_server *s, const rdmahttp_transfer *t, size_t n,
                    unsigned flags)
{
    uint32_t stag = lib.ep->window[t->window].region.mr->rkey;
    rdma_conn_wr *wr = calloc(1, sizeof(*wr));
    int rc;

    ck_assert_ptr_nonnull(wr);
    wr->done = written;
    rdma_conn_lock(s->conn);
    rc = rdma_conn_write(s->conn, wr, s->body.base, s->body.mr->lkey,
                         (uint32_t)n, (uint64_t)(uintptr_t)t->base, stag);
    rdma_conn_unlock(s->conn);
    if (rc) {
        ck_assert_int_eq(rc, ENOTCONN);
        free(wr);
    }
    lib_say(s, RDMA_HDR_WRITTEN, t->id, n, flags);
}

/* ---- the application --------------------------------------------------- */

void lib_on_wake(void *baton)
{
    (void)baton;
    __atomic_add_fetch(&lib.wakes, 1, __ATOMIC_ACQ_REL);
}

int lib_sink(void *baton, const void *bytes, size_t n)
{
    const char *p = bytes;
    size_t i = 0;

    while (i < n && p[i] == CONTENT) { /* an assertion for each would be slow */
        i++;
    }
    ck_assert_uint_eq(i, n);
    *(size_t *)baton += n;
    return 0;
}

void lib_expect_awake(unsigned before)
{
    rdma_conn_time until = rdma_conn_now() + LIB_PATIENT;

    while (__atomic_load_n(&lib.wakes, __ATOMIC_ACQUIRE) == before) {
        ck_assert_msg(rdma_conn_now() < until, "nobody has woken us");
        usleep(1000);
    }
}

rdmahttp_taken lib_take_some(rdmahttp_transfer *t, size_t most, size_t *n)
{
    rdma_conn_time deadline = 0;
    rdmahttp_taken rc;
    unsigned before;

    *n = 0;
    rdmahttp_endpoint_watch(lib.ep, t, lib_on_wake, NULL);
    do {
        before = __atomic_load_n(&lib.wakes, __ATOMIC_ACQUIRE);
        rc = rdmahttp_endpoint_take(lib.ep, t, 0, &deadline, lib_sink, n);
        if (rc == RDMAHTTP_TAKE_WAIT) {
            lib_expect_awake(before);
        }
    } while (rc == RDMAHTTP_TAKE_WAIT
             || (rc == RDMAHTTP_TAKE_MORE && *n < most));
    return rc;
}

rdmahttp_taken lib_take_all(rdmahttp_transfer *t, size_t *n)
{
    return lib_take_some(t, SIZE_MAX, n);
}

int lib_head(rdmahttp_transfer *t, uint32_t conn, uint64_t total)
{
    rdma_hdr_response resp = {.id = t->id,
                              .conn = conn,
                              .kind = RDMA_HDR_WRITE,
                              .has_total = total > 0,
                              .total = total};

    ck_assert_int_eq(rdmahttp_endpoint_bind(lib.ep, t, conn), 0);
    return rdmahttp_endpoint_head(lib.ep, t, &resp, total == 0);
}

int lib_read_head(rdmahttp_transfer *t, const lib_server *s)
{
    rdma_hdr_response resp = {.id = t->id,
                              .conn = rdma_conn_number(s->conn),
                              .kind = RDMA_HDR_READ,
                              .stag = s->body.mr->rkey,
                              .to = (uint64_t)(uintptr_t)s->body.base,
                              .len = LIB_BODY,
                              .fin = 1};

    ck_assert_int_eq(rdmahttp_endpoint_bind(lib.ep, t, resp.conn), 0);
    return rdmahttp_endpoint_head(lib.ep, t, &resp, 0);
}

/* ---- waiting for what nobody signals ----------------------------------- */

unsigned lib_count_peers(void)
{
    const rdmahttp_peer *p;
    unsigned n = 0;

    rdmahttp_endpoint_lock(lib.ep);
    for (p = lib.ep->peers; p; p = p->next) {
        n++;
    }
    rdmahttp_endpoint_unlock(lib.ep);
    return n;
}

int lib_no_peer(void)
{
    return lib_count_peers() == 0;
}

int lib_is_open(void)
{
    int open;

    rdmahttp_endpoint_lock(lib.ep);
    open = lib.ep->peers && lib.ep->peers->open;
    rdmahttp_endpoint_unlock(lib.ep);
    return open;
}

void lib_await(int (*test)(void), const char *what)
{
    rdma_conn_time until = rdma_conn_now() + LIB_PATIENT;

    while (!test()) {
        ck_assert_msg(rdma_conn_now() < until, "%s", what);
        usleep(1000);
    }
}

/* ---- before and after a test ------------------------------------------- */

void lib_setup(void)
{
    memset(&lib, 0, sizeof(lib));
    lib.conf = (rdmahttp_conf){.window = 256 * 1024,
                               .windows = 2,
                               .timeout_ms = 10000,
                               .connections = 8};
    fake_start();
    fake_spare_this_thread(1);
}

int lib_open(char *why)
{
    struct sockaddr_storage local = {.ss_family = AF_INET};
    int rc;

    inet_pton(AF_INET, "192.0.2.2", &((struct sockaddr_in *)&local)->sin_addr);
    rc = rdmahttp_endpoint_open(&lib.conf, &local, &lib.ep, why);
    if (rc == 0) {
        rdmahttp_endpoint_expect(lib.ep, "192.0.2.1");
    }
    return rc;
}

void lib_go(void)
{
    char why[RDMAHTTP_TEXT_MAX];

    ck_assert_msg(lib_open(why) == 0, "%s", why);
}

void lib_teardown(void)
{
    int i;

    if (lib.ep) {
        rdmahttp_endpoint_close(lib.ep);
        lib.ep = NULL;
    }
    for (i = 0; i < LIB_SERVERS; i++) {
        lib_server_free(&lib.servers[i]);
    }
    ck_assert_uint_eq(fake_stop(), 0);
    ck_assert_uint_eq(fake_registered(), 0);
}

TCase *lib_group(Suite *s, const char *name)
{
    return common_group(s, name, lib_setup, lib_teardown);
}
