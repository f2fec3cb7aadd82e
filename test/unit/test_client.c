/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The client's endpoint: its connections and their ends, which may come at any
 * moment of a request.
 */
#include "client_kit.h"

#include <errno.h>
#include <unistd.h>

#include "../../rdma_conn_private.h"

/* ---- bodies ------------------------------------------------------------ */

START_TEST(body_in_one_pass)
{
    rdmahttp_transfer *t;
    size_t n;

    lib_go();
    t = rdmahttp_endpoint_begin(lib.ep);
    ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_WRITE), 0);
    lib_write_body(&lib.servers[0], t, LIB_BODY, RDMA_HDR_FIN);
    ck_assert_int_eq(lib_head(t, 1, LIB_BODY), 0);
    ck_assert_int_eq(lib_take_all(t, &n), RDMAHTTP_TAKE_ALL);
    ck_assert_uint_eq(n, LIB_BODY);
    rdmahttp_endpoint_release(lib.ep, t);
}
END_TEST

START_TEST(body_that_is_read)
{
    rdmahttp_transfer *t;
    size_t n;

    lib.conf.window = 64 * 1024; /* a ring, which the body goes round */
    lib_go();
    t = rdmahttp_endpoint_begin(lib.ep);
    ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_READ), 0);
    ck_assert_int_eq(lib_read_head(t, &lib.servers[0]), 0);
    ck_assert_int_eq(lib_take_all(t, &n), RDMAHTTP_TAKE_ALL);
    ck_assert_uint_eq(n, LIB_BODY);
    rdmahttp_endpoint_release(lib.ep, t);
}
END_TEST

static int reads_are_on_their_way(void)
{
    unsigned n;

    rdmahttp_endpoint_lock(lib.ep);
    n = lib.ep->transfers->reads;
    rdmahttp_endpoint_unlock(lib.ep);
    return n > 0;
}

/* READs of which nothing is known any more: the window is nobody's before the QP
 * is gone, and then it is free. */
START_TEST(lost_with_reads_in_flight)
{
    rdmahttp_transfer *t;
    size_t n;

    lib.conf.windows = 1;
    lib_go();
    t = rdmahttp_endpoint_begin(lib.ep);
    ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_READ), 0);
    lib_await(lib_is_open, "no HELLO");
    fake_freeze(rdma_conn_id(lib.servers[0].conn), 1);
    ck_assert_int_eq(lib_read_head(t, &lib.servers[0]), 0);
    lib_await(reads_are_on_their_way, "no READ is posted");
    fake_kill(rdma_conn_id(lib.servers[0].conn));
    ck_assert_int_eq(lib_take_all(t, &n), RDMAHTTP_TAKE_FAILED);
    rdmahttp_endpoint_release(lib.ep, t);
    lib_await(lib_no_peer, "the connection is still there");
    t = rdmahttp_endpoint_begin(lib.ep);
    ck_assert_ptr_nonnull(t);
    rdmahttp_endpoint_release(lib.ep, t);
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

    lib.conf.timeout_ms = 3600 * 1000;
    lib_go();
    t = rdmahttp_endpoint_begin(lib.ep);
    ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_WRITE), 0);
    ck_assert_int_eq(lib_head(t, 1, 0), 0);
    lib_write_body(&lib.servers[0], t, LIB_BODY, 0);
    rdmahttp_endpoint_watch(lib.ep, t, lib_on_wake, NULL);
    do {
        before = __atomic_load_n(&lib.wakes, __ATOMIC_ACQUIRE);
        rc = rdmahttp_endpoint_take(lib.ep, t, 0, &deadline, lib_sink, &n);
        if (rc == RDMAHTTP_TAKE_WAIT && n < LIB_BODY) {
            lib_expect_awake(before);
        }
    } while (rc == RDMAHTTP_TAKE_MORE || n < LIB_BODY);
    ck_assert_int_eq(rc, RDMAHTTP_TAKE_WAIT);
    lib_hang_up(&lib.servers[0]);
    lib_expect_awake(before);
    ck_assert_int_eq(
        rdmahttp_endpoint_take(lib.ep, t, 0, &deadline, lib_sink, &n),
        RDMAHTTP_TAKE_FAILED);
    rdmahttp_endpoint_release(lib.ep, t);
    lib_await(lib_no_peer, "the connection is still there");
}
END_TEST

/* ---- who connects ------------------------------------------------------- */

static void is_turned_away(lib_server *s, rdma_hdr_reject why)
{
    ck_assert_int_eq(lib_dial(s, RDMA_HDR_WRITE), -1);
    ck_assert_int_eq(s->why.cause, RDMA_CONN_CAUSE_REJECTED);
    ck_assert_int_eq(s->why.reject, why);
    ck_assert_uint_eq(lib_count_peers(), 0);
    lib_server_free(s);
}

/* Only who knows the token, and is where we speak HTTP; and in our mode. */
START_TEST(who_may_connect)
{
    lib.conf.mode = RDMAHTTP_READ;
    lib_go();
    lib.servers[0].twist = 1;
    is_turned_away(&lib.servers[0], RDMA_HDR_REJECT_KIND);
    rdmahttp_endpoint_close(lib.ep);
    lib.conf.mode = RDMAHTTP_AUTO;
    lib_go();
    lib.servers[0].twist = 1;
    is_turned_away(&lib.servers[0], RDMA_HDR_REJECT_TOKEN);
    lib.servers[0].from = "192.0.2.3";
    is_turned_away(&lib.servers[0], RDMA_HDR_REJECT_ADDRESS);
    ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_WRITE), 0);
    lib_await(lib_is_open, "no HELLO");
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
        moment.rc = lib_head(moment.t, 1, 0);
    }
    else {
        ck_assert_int_eq(rdmahttp_endpoint_bind(lib.ep, moment.t, 1), 0);
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

    lib.conf.timeout_ms = 3600 * 1000;
    lib_go();
    moment.t = rdmahttp_endpoint_begin(lib.ep);
    moment.with_head = _i % 2;
    if (!moments[m].error) {
        ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_WRITE), 0);
    }
    fake_meet(moments[m].at, 1, moments[m].error, head_comes, NULL);
    if (moments[m].error) {
        ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_WRITE), -1);
    }
    else {
        lib_hang_up(&lib.servers[0]);
    }
    lib_await(moment_was, "the moment has not come");
    lib_await(lib_no_peer, "the connection is still there");
    ck_assert_int_eq(moment.had_peer, moments[m].is_there);
    if (!moment.with_head) {
        moment.rc = lib_head(moment.t, 1, 0);
        ck_assert_int_eq(moment.rc, -1);
    }
    ck_assert_int_eq(moment.rc, moments[m].lost || !moment.with_head ? -1 : 0);
    if (moment.rc == 0) {
        rc = lib_take_all(moment.t, &n);
    }
    ck_assert_int_eq(rc, RDMAHTTP_TAKE_FAILED);
    rdmahttp_endpoint_lock(lib.ep);
    ck_assert_ptr_null(moment.t->peer);
    ck_assert_int_eq(moment.t->state, RDMAHTTP_FAILED);
    rdmahttp_endpoint_unlock(lib.ep);
    rdmahttp_endpoint_release(lib.ep, moment.t);
}
END_TEST

/* ---- limits ------------------------------------------------------------ */

/* As if nothing had been heard of the first connection for a minute. */
static void age(void)
{
    rdma_conn *c;

    rdmahttp_endpoint_lock(lib.ep);
    c = lib.ep->peers->conn;
    rdmahttp_endpoint_unlock(lib.ep);
    rdma_conn_lock(c);
    c->heard -= 60 * LIB_SECOND;
    rdma_conn_unlock(c);
}

static int was_heard(void)
{
    rdma_conn_time heard;
    rdma_conn *c;

    rdmahttp_endpoint_lock(lib.ep);
    c = lib.ep->peers->conn;
    rdmahttp_endpoint_unlock(lib.ep);
    rdma_conn_lock(c);
    heard = rdma_conn_heard(c);
    rdma_conn_unlock(c);
    return rdma_conn_now() - heard < 30 * LIB_SECOND;
}

/* A dead connection keeps nobody out for ever; one that lives does. */
START_TEST(dead_connections_make_room)
{
    rdma_conn_time until = rdma_conn_now() + LIB_PATIENT;
    int rc;

    lib.conf.connections = 1;
    lib.conf.timeout_ms = 500;
    lib_go();
    ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_WRITE), 0);
    lib_await(lib_is_open, "no HELLO");
    age();
    lib_await(was_heard, "it has not been asked");
    ck_assert_int_eq(lib_dial(&lib.servers[1], RDMA_HDR_WRITE), -1);
    ck_assert_int_eq(lib.servers[1].why.reject, RDMA_HDR_REJECT_BUSY);
    lib_server_free(&lib.servers[1]);

    __atomic_store_n(&lib.servers[0].deaf, 1, __ATOMIC_RELEASE);
    age();
    do {
        rc = lib_dial(&lib.servers[1], RDMA_HDR_WRITE);
        if (rc) {
            lib_server_free(&lib.servers[1]);
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
    rdmahttp_transfer *t = rdmahttp_endpoint_begin(lib.ep);

    if (t) {
        rdmahttp_endpoint_release(lib.ep, t);
    }
    return t == NULL;
}

/* Nothing of it is held, once the application has put its window down. */
START_TEST(device_leaves)
{
    rdmahttp_transfer *t;
    size_t n;

    lib_go();
    t = rdmahttp_endpoint_begin(lib.ep);
    ck_assert_int_eq(lib_dial(&lib.servers[0], RDMA_HDR_WRITE), 0);
    ck_assert_int_eq(lib_head(t, 1, 0), 0);
    fake_remove_device();
    ck_assert_int_eq(lib_take_all(t, &n), RDMAHTTP_TAKE_FAILED);
    lib_await(is_out_of_use, "it is in use");
    lib_server_free(&lib.servers[0]);
    ck_assert_uint_ne(fake_registered(), 0);
    rdmahttp_endpoint_release(lib.ep, t);
    lib_await(only_its_events_are_left, "it is held");
}
END_TEST

static void add(Suite *s)
{
    TCase *t = lib_group(s, "endpoint");

    tcase_add_test(t, body_in_one_pass);
    tcase_add_test(t, body_that_is_read);
    tcase_add_test(t, lost_with_reads_in_flight);
    tcase_add_test(t, lost_in_a_stream);
    tcase_add_test(t, who_may_connect);
    tcase_add_loop_test(t, head_names_a_connection_that_ends, 0, 2 * MOMENTS);
    tcase_add_test(t, dead_connections_make_room);
    tcase_add_test(t, device_leaves);
}

int main(void)
{
    return common_main("client", add);
}
