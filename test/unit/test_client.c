/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The client's endpoint, over a device that is not there: its connections and
 * their ends, which may come at any moment of a request. The server here is a
 * connection by rdma_conn_connect() that says what the test wants.
 */
#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fake.h"
#include "../../client/endpoint_private.h"
#include "../../rdma_conn_private.h"

#define MS      ((rdma_conn_time)1000)
#define SECOND  ((rdma_conn_time)1000000)
#define PATIENT (20 * SECOND) /* a test that waits so long has failed */
#define SERVERS 4
#define BODY    ((size_t)100000)

/* ---- the server -------------------------------------------------------- */

typedef struct server {
    rdma_conn *conn;
    rdma_mem *mem;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct rdma_event_channel *events;
    rdma_mem_region body;
    rdma_conn_wr wr;
    pthread_t thread;
    int wake_fd;
    int has_thread;
    int quit;
    int deaf;         /* reads nothing that comes */
    const char *from; /* its address; NULL: the one that is expected */
    uint8_t twist;    /* what is wrong with the token that it says */
    rdma_conn_failure why;
    rdma_hdr_msg last; /* that came */
} server;

static rdmahttp_conf conf;
static rdmahttp_endpoint *ep;
static server servers[SERVERS];

static int on_message(void *baton, rdma_conn *c, const rdma_hdr_msg *m)
{
    (void)c;
    ((server *)baton)->last = *m;
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
    server *s = baton;

    s->pd = ibv_alloc_pd(id->verbs);
    return s->pd;
}

static struct ibv_comp_channel *channel(void *baton, struct rdma_cm_id *id)
{
    server *s = baton;

    s->channel = ibv_create_comp_channel(id->verbs);
    ck_assert_int_eq(fcntl(s->channel->fd, F_SETFL, O_NONBLOCK), 0);
    return s->channel;
}

static void *pump(void *arg)
{
    server *s = arg;
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

/* 0, or -1 with s->why. */
static int dial(server *s, rdma_hdr_kind kind)
{
    rdma_conn_conf c = {.kind = kind,
                        .domain = domain,
                        .channel = channel,
                        .handler = &handler,
                        .baton = s};
    rdma_conn_target to = {.deadline = rdma_conn_now() + PATIENT};
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
    remote->sin_port = htons(ep->port);
    memcpy(to.token, ep->token, sizeof(to.token));
    to.token[RDMA_HDR_TOKEN_LEN - 1] ^= s->twist;
    rc = rdma_conn_connect(&c, &to, s->events, &s->conn, &s->why);
    if (rc == 0) {
        ck_assert_int_eq(
            rdma_mem_map(s->mem, s->pd, BODY,
                         IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ,
                         &s->body),
            0);
        memset(s->body.base, 0x5a, BODY);
        ck_assert_int_eq(pthread_create(&s->thread, NULL, pump, s), 0);
        s->has_thread = 1;
    }
    return rc;
}

static void hang_up(server *s)
{
    rdma_conn_lock(s->conn);
    rdma_conn_close(s->conn, RDMA_CONN_CAUSE_LOCAL);
    rdma_conn_unlock(s->conn);
}

static void server_free(server *s)
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

static void say(server *s, rdma_hdr_type type, uint32_t id, uint64_t bytes,
                unsigned flags)
{
    rdma_hdr_msg m = {
        .type = type, .id = id, .bytes = bytes, .flags = (uint8_t)flags};

    rdma_conn_lock(s->conn);
    ck_assert_int_eq(rdma_conn_say(s->conn, &m, NULL), 0);
    rdma_conn_unlock(s->conn);
}

static void written(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    (void)wr;
    (void)c;
    (void)ok;
}

/* n bytes of the body into the window of t, and what the client has to be told
 * of that. */
static void write_body(server *s, const rdmahttp_transfer *t, size_t n,
                       unsigned flags)
{
    s->wr.done = written;
    rdma_conn_lock(s->conn);
    ck_assert_int_eq(rdma_conn_write(s->conn, &s->wr, s->body.base,
                                     s->body.mr->lkey, (uint32_t)n,
                                     (uint64_t)(uintptr_t)t->base,
                                     ep->window[t->window].region.mr->rkey),
                     0);
    rdma_conn_unlock(s->conn);
    say(s, RDMA_HDR_WRITTEN, t->id, n, flags);
}

/* ---- the application --------------------------------------------------- */

static unsigned wakes;

static void on_wake(void *baton)
{
    (void)baton;
    __atomic_add_fetch(&wakes, 1, __ATOMIC_ACQ_REL);
}

static int sink(void *baton, const void *bytes, size_t n)
{
    const char *p = bytes;
    size_t i;

    for (i = 0; i < n; i++) {
        ck_assert_int_eq(p[i], 0x5a);
    }
    *(size_t *)baton += n;
    return 0;
}

static void expect_awake(unsigned before)
{
    rdma_conn_time until = rdma_conn_now() + PATIENT;

    while (__atomic_load_n(&wakes, __ATOMIC_ACQUIRE) == before) {
        ck_assert_msg(rdma_conn_now() < until, "nobody has woken us");
        usleep(1000);
    }
}

/* Take what comes, asleep while nothing does. How it ended, and *n bytes. */
static rdmahttp_taken take_all(rdmahttp_transfer *t, size_t *n)
{
    rdma_conn_time deadline = 0;
    rdmahttp_taken rc;

    *n = 0;
    rdmahttp_endpoint_watch(ep, t, on_wake, NULL);
    for (;;) {
        unsigned before = __atomic_load_n(&wakes, __ATOMIC_ACQUIRE);

        rc = rdmahttp_endpoint_take(ep, t, 0, &deadline, sink, n);
        if (rc != RDMAHTTP_TAKE_MORE && rc != RDMAHTTP_TAKE_WAIT) {
            return rc;
        }
        if (rc == RDMAHTTP_TAKE_WAIT) {
            expect_awake(before);
        }
    }
}

/* The head of a response by server-write, and its connection 1: W2, or W1 if
 * total is not 0. As rdmahttp_endpoint_head(). */
static int head(rdmahttp_transfer *t, uint64_t total)
{
    rdma_hdr_response resp = {.id = t->id,
                              .conn = 1,
                              .kind = RDMA_HDR_WRITE,
                              .has_total = total > 0,
                              .total = total};

    ck_assert_int_eq(rdmahttp_endpoint_bind(ep, t, 1), 0);
    return rdmahttp_endpoint_head(ep, t, &resp, total == 0);
}

/* The same by client-read, R1: the server's body lies there. */
static int read_head(rdmahttp_transfer *t, const server *s)
{
    rdma_hdr_response resp = {.id = t->id,
                              .conn = 1,
                              .kind = RDMA_HDR_READ,
                              .stag = s->body.mr->rkey,
                              .to = (uint64_t)(uintptr_t)s->body.base,
                              .len = BODY,
                              .fin = 1};

    ck_assert_int_eq(rdmahttp_endpoint_bind(ep, t, 1), 0);
    return rdmahttp_endpoint_head(ep, t, &resp, 0);
}

/* ---- waiting for what nobody signals ----------------------------------- */

static unsigned count_peers(void)
{
    const rdmahttp_peer *p;
    unsigned n = 0;

    rdmahttp_endpoint_lock(ep);
    for (p = ep->peers; p; p = p->next) {
        n++;
    }
    rdmahttp_endpoint_unlock(ep);
    return n;
}

static int no_peer(void)
{
    return count_peers() == 0;
}

static int is_open(void)
{
    int open;

    rdmahttp_endpoint_lock(ep);
    open = ep->peers && ep->peers->open;
    rdmahttp_endpoint_unlock(ep);
    return open;
}

static void await(int (*test)(void), const char *what)
{
    rdma_conn_time until = rdma_conn_now() + PATIENT;

    while (!test()) {
        ck_assert_msg(rdma_conn_now() < until, "%s", what);
        usleep(1000);
    }
}

/* ---- before and after a test ------------------------------------------- */

static void setup(void)
{
    conf = (rdmahttp_conf){.window = 256 * 1024,
                           .windows = 2,
                           .timeout_ms = 10000,
                           .connections = 8};
    fake_start();
    fake_spare_this_thread(1);
}

static void go(void)
{
    struct sockaddr_storage local = {.ss_family = AF_INET};
    char why[RDMAHTTP_TEXT_MAX];

    inet_pton(AF_INET, "192.0.2.2", &((struct sockaddr_in *)&local)->sin_addr);
    ck_assert_msg(rdmahttp_endpoint_open(&conf, &local, &ep, why) == 0, "%s",
                  why);
    rdmahttp_endpoint_expect(ep, "192.0.2.1");
}

static void teardown(void)
{
    int i;

    if (ep) {
        rdmahttp_endpoint_close(ep);
    }
    for (i = 0; i < SERVERS; i++) {
        server_free(&servers[i]);
    }
    ck_assert_uint_eq(fake_stop(), 0);
    ck_assert_uint_eq(fake_registered(), 0);
}

/* ---- bodies ------------------------------------------------------------ */

START_TEST(body_in_one_pass)
{
    rdmahttp_transfer *t;
    size_t n;

    go();
    t = rdmahttp_endpoint_begin(ep);
    ck_assert_int_eq(dial(&servers[0], RDMA_HDR_WRITE), 0);
    write_body(&servers[0], t, BODY, RDMA_HDR_FIN);
    ck_assert_int_eq(head(t, BODY), 0);
    ck_assert_int_eq(take_all(t, &n), RDMAHTTP_TAKE_ALL);
    ck_assert_uint_eq(n, BODY);
    rdmahttp_endpoint_release(ep, t);
}
END_TEST

START_TEST(body_that_is_read)
{
    rdmahttp_transfer *t;
    size_t n;

    conf.window = 64 * 1024; /* a ring, which the body goes round */
    go();
    t = rdmahttp_endpoint_begin(ep);
    ck_assert_int_eq(dial(&servers[0], RDMA_HDR_READ), 0);
    ck_assert_int_eq(read_head(t, &servers[0]), 0);
    ck_assert_int_eq(take_all(t, &n), RDMAHTTP_TAKE_ALL);
    ck_assert_uint_eq(n, BODY);
    rdmahttp_endpoint_release(ep, t);
}
END_TEST

static int reads_are_on_their_way(void)
{
    unsigned n;

    rdmahttp_endpoint_lock(ep);
    n = ep->transfers->reads;
    rdmahttp_endpoint_unlock(ep);
    return n > 0;
}

/* READs of which nothing is known any more: the window is nobody's before the QP
 * is gone, and then it is free. */
START_TEST(lost_with_reads_in_flight)
{
    rdmahttp_transfer *t;
    size_t n;

    conf.windows = 1;
    go();
    t = rdmahttp_endpoint_begin(ep);
    ck_assert_int_eq(dial(&servers[0], RDMA_HDR_READ), 0);
    await(is_open, "no HELLO");
    fake_freeze(rdma_conn_id(servers[0].conn), 1);
    ck_assert_int_eq(read_head(t, &servers[0]), 0);
    await(reads_are_on_their_way, "no READ is posted");
    fake_kill(rdma_conn_id(servers[0].conn));
    ck_assert_int_eq(take_all(t, &n), RDMAHTTP_TAKE_FAILED);
    rdmahttp_endpoint_release(ep, t);
    await(no_peer, "the connection is still there");
    t = rdmahttp_endpoint_begin(ep);
    ck_assert_ptr_nonnull(t);
    rdmahttp_endpoint_release(ep, t);
}
END_TEST

/* The source of a stream may be silent for ever, but not without a connection:
 * who waits is told that it is lost, and of nothing else. */
START_TEST(lost_in_a_stream)
{
    rdmahttp_transfer *t;
    rdma_conn_time deadline = 0;
    rdmahttp_taken rc;
    size_t n = 0;
    unsigned before;

    conf.timeout_ms = 3600 * 1000;
    go();
    t = rdmahttp_endpoint_begin(ep);
    ck_assert_int_eq(dial(&servers[0], RDMA_HDR_WRITE), 0);
    ck_assert_int_eq(head(t, 0), 0);
    write_body(&servers[0], t, BODY, 0);
    rdmahttp_endpoint_watch(ep, t, on_wake, NULL);
    do {
        before = __atomic_load_n(&wakes, __ATOMIC_ACQUIRE);
        rc = rdmahttp_endpoint_take(ep, t, 0, &deadline, sink, &n);
        if (rc == RDMAHTTP_TAKE_WAIT && n < BODY) {
            expect_awake(before);
        }
    } while (rc == RDMAHTTP_TAKE_MORE || n < BODY);
    ck_assert_int_eq(rc, RDMAHTTP_TAKE_WAIT);
    hang_up(&servers[0]);
    expect_awake(before);
    ck_assert_int_eq(rdmahttp_endpoint_take(ep, t, 0, &deadline, sink, &n),
                     RDMAHTTP_TAKE_FAILED);
    rdmahttp_endpoint_release(ep, t);
    await(no_peer, "the connection is still there");
}
END_TEST

/* ---- who connects ------------------------------------------------------- */

static void is_turned_away(server *s, rdma_hdr_reject why)
{
    ck_assert_int_eq(dial(s, RDMA_HDR_WRITE), -1);
    ck_assert_int_eq(s->why.cause, RDMA_CONN_CAUSE_REJECTED);
    ck_assert_int_eq(s->why.reject, why);
    ck_assert_uint_eq(count_peers(), 0);
    server_free(s);
}

/* Only who knows the token, and is where we speak HTTP; and in our mode. */
START_TEST(who_may_connect)
{
    conf.mode = RDMAHTTP_READ;
    go();
    servers[0].twist = 1;
    is_turned_away(&servers[0], RDMA_HDR_REJECT_KIND);
    rdmahttp_endpoint_close(ep);
    conf.mode = RDMAHTTP_AUTO;
    go();
    servers[0].twist = 1;
    is_turned_away(&servers[0], RDMA_HDR_REJECT_TOKEN);
    servers[0].from = "192.0.2.3";
    is_turned_away(&servers[0], RDMA_HDR_REJECT_ADDRESS);
    ck_assert_int_eq(dial(&servers[0], RDMA_HDR_WRITE), 0);
    await(is_open, "no HELLO");
}
END_TEST

/* ---- heads in a connection's last, and first, moments ------------------ */

static struct {
    rdmahttp_transfer *t;
    int with_head;
    int rc; /* of the head */
    int had_peer;
} moment;

/* In the endpoint's thread, while that is at work on connection 1. */
static void head_comes(void *baton)
{
    (void)baton;
    if (moment.with_head) {
        moment.rc = head(moment.t, 0);
    }
    else {
        ck_assert_int_eq(rdmahttp_endpoint_bind(ep, moment.t, 1), 0);
    }
    moment.had_peer = moment.t->peer != NULL;
}

static int moment_was(void)
{
    return fake_met();
}

static const struct {
    const char *at; /* the call in which the head comes */
    int error;      /* that it fails with */
    int is_there;   /* the connection can still be named */
    int lost;       /* it is known to be lost */
} moments[] = {
    {"rdma_accept", ECONNRESET, 1, 0}, /* it will not be accepted */
    {"rdma_destroy_qp", 0, 1, 1},      /* closed, and its QP is there */
    {"ibv_dereg_mr", 0, 0, 1},         /* the QP is gone, its memory goes */
};
#define MOMENTS (int)(sizeof(moments) / sizeof(moments[0]))

/* Whenever the head comes: nothing points to the connection afterwards, and the
 * transfer has failed at once, although it is a stream and nobody is timed. */
START_TEST(head_names_a_connection_that_ends)
{
    int m = _i / 2;
    rdmahttp_taken rc = RDMAHTTP_TAKE_FAILED;
    size_t n;

    conf.timeout_ms = 3600 * 1000;
    go();
    moment.t = rdmahttp_endpoint_begin(ep);
    moment.with_head = _i % 2;
    if (!moments[m].error) {
        ck_assert_int_eq(dial(&servers[0], RDMA_HDR_WRITE), 0);
    }
    fake_meet(moments[m].at, 1, moments[m].error, head_comes, NULL);
    if (moments[m].error) {
        ck_assert_int_eq(dial(&servers[0], RDMA_HDR_WRITE), -1);
    }
    else {
        hang_up(&servers[0]);
    }
    await(moment_was, "the moment has not come");
    await(no_peer, "the connection is still there");
    ck_assert_int_eq(moment.had_peer, moments[m].is_there);
    if (!moment.with_head) {
        moment.rc = head(moment.t, 0);
        ck_assert_int_eq(moment.rc, -1);
    }
    ck_assert_int_eq(moment.rc, moments[m].lost || !moment.with_head ? -1 : 0);
    if (moment.rc == 0) {
        rc = take_all(moment.t, &n);
    }
    ck_assert_int_eq(rc, RDMAHTTP_TAKE_FAILED);
    rdmahttp_endpoint_lock(ep);
    ck_assert_ptr_null(moment.t->peer);
    ck_assert_int_eq(moment.t->state, RDMAHTTP_FAILED);
    rdmahttp_endpoint_unlock(ep);
    rdmahttp_endpoint_release(ep, moment.t);
}
END_TEST

/* ---- limits ------------------------------------------------------------ */

/* As if nothing had been heard of the first connection for a minute. */
static void age(void)
{
    rdma_conn *c;

    rdmahttp_endpoint_lock(ep);
    c = ep->peers->conn;
    rdmahttp_endpoint_unlock(ep);
    rdma_conn_lock(c);
    c->heard -= 60 * SECOND;
    rdma_conn_unlock(c);
}

static int was_heard(void)
{
    rdma_conn_time heard;
    rdma_conn *c;

    rdmahttp_endpoint_lock(ep);
    c = ep->peers->conn;
    rdmahttp_endpoint_unlock(ep);
    rdma_conn_lock(c);
    heard = rdma_conn_heard(c);
    rdma_conn_unlock(c);
    return rdma_conn_now() - heard < 30 * SECOND;
}

/* A dead connection keeps nobody out for ever; one that lives does. */
START_TEST(dead_connections_make_room)
{
    rdma_conn_time until = rdma_conn_now() + PATIENT;
    int rc;

    conf.connections = 1;
    conf.timeout_ms = 500;
    go();
    ck_assert_int_eq(dial(&servers[0], RDMA_HDR_WRITE), 0);
    await(is_open, "no HELLO");
    age();
    await(was_heard, "it has not been asked");
    ck_assert_int_eq(dial(&servers[1], RDMA_HDR_WRITE), -1);
    ck_assert_int_eq(servers[1].why.reject, RDMA_HDR_REJECT_BUSY);
    server_free(&servers[1]);

    __atomic_store_n(&servers[0].deaf, 1, __ATOMIC_RELEASE);
    age();
    do {
        rc = dial(&servers[1], RDMA_HDR_WRITE);
        if (rc) {
            server_free(&servers[1]);
            usleep(10000);
        }
    } while (rc && rdma_conn_now() < until);
    ck_assert_int_eq(rc, 0);
}
END_TEST

/* ---- a device that leaves ---------------------------------------------- */

static int only_its_events_are_left(void)
{
    return fake_registered() == 0 && fake_open_objects() == 1;
}

/* The word of it may come after the end of what was under way. */
static int is_out_of_use(void)
{
    rdmahttp_transfer *t = rdmahttp_endpoint_begin(ep);

    if (t) {
        rdmahttp_endpoint_release(ep, t);
    }
    return t == NULL;
}

/* Nothing of it is held, once the application has put its window down. */
START_TEST(device_leaves)
{
    rdmahttp_transfer *t;
    size_t n;

    go();
    t = rdmahttp_endpoint_begin(ep);
    ck_assert_int_eq(dial(&servers[0], RDMA_HDR_WRITE), 0);
    ck_assert_int_eq(head(t, 0), 0);
    fake_remove_device();
    ck_assert_int_eq(take_all(t, &n), RDMAHTTP_TAKE_FAILED);
    await(is_out_of_use, "it is in use");
    server_free(&servers[0]);
    ck_assert_uint_ne(fake_registered(), 0);
    rdmahttp_endpoint_release(ep, t);
    await(only_its_events_are_left, "it is held");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("client");
    TCase *t = tcase_create("endpoint");
    SRunner *runner;
    int failed;

    fake_seed();
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, body_in_one_pass);
    tcase_add_test(t, body_that_is_read);
    tcase_add_test(t, lost_with_reads_in_flight);
    tcase_add_test(t, lost_in_a_stream);
    tcase_add_test(t, who_may_connect);
    tcase_add_loop_test(t, head_names_a_connection_that_ends, 0, 2 * MOMENTS);
    tcase_add_test(t, dead_connections_make_room);
    tcase_add_test(t, device_leaves);
    suite_add_tcase(suite, t);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
