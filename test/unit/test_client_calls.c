/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The client's endpoint when calls fail: each call of each function in turn,
 * through a life from opening to closing.
 */
#include "client_kit.h"

#include <errno.h>
#include <string.h>

/* A life that takes so long has waited for a deadline: those of the endpoint
 * are 5 seconds and more. */
#define SOON (4 * LIB_SECOND)

/* The N-th call fails, with N from 1 until there is none. A function that a life
 * calls often has a step of 2: seeds 1 and 2, which a check runs, see every N
 * together, and so do 3 and 4. Only the library's calls count, not those of the
 * servers here. */
static const struct {
    const char *function;
    int error;
    unsigned step;
} calls[] = {{"ibv_query_device", EIO, 1},
             {"ibv_alloc_pd", ENOMEM, 1},
             {"ibv_reg_mr", ENOMEM, 1},
             {"ibv_dereg_mr", EIO, 1},
             {"ibv_create_comp_channel", ENOMEM, 1},
             {"ibv_get_cq_event", EIO, 2},
             {"ibv_create_cq", ENOMEM, 1},
             {"ibv_req_notify_cq", ENOMEM, 2},
             {"ibv_poll_cq", EIO, 2},
             {"ibv_post_send", ENOMEM, 1},
             {"ibv_post_send", ENOTCONN, 1}, /* and queued all the same */
             {"ibv_post_recv", ENOMEM, 2},
             {"rdma_create_event_channel", ENODEV, 1},
             {"rdma_create_id", ENOMEM, 1},
             {"rdma_bind_addr", EADDRNOTAVAIL, 1},
             {"rdma_listen", EADDRINUSE, 1},
             {"rdma_listen", ENOMEM, 1},
             {"rdma_create_qp", ENOMEM, 1},
             {"rdma_accept", ENOMEM, 1},
             {"rdma_reject", ENOMEM, 1},
             {"rdma_disconnect", ENOMEM, 1},
             {"rdma_get_cm_event", ENOMEM, 1},
             {"calloc", ENOMEM, 1},
             {"mmap", ENOMEM, 1},
             {"fcntl", EBADF, 1},
             {"eventfd", EMFILE, 1},
             {"pthread_create", EAGAIN, 1}};

/* ---- the application --------------------------------------------------- */

/* NULL: there is nothing to ask by RDMA with. */
static rdmahttp_transfer *ask(void)
{
    char field[RDMA_HDR_FORMAT_MAX];
    char masked[RDMA_HDR_FORMAT_MAX];
    rdmahttp_transfer *t;

    fake_spare_this_thread(0);
    t = rdmahttp_endpoint_begin(lib.ep);
    fake_spare_this_thread(1);
    if (t) {
        ck_assert_int_eq(rdmahttp_endpoint_field(lib.ep, t, field, masked), 0);
        memset(t->base, 0, t->len); /* an earlier body is not this one */
    }
    return t;
}

/* Its part from the head on: up to so many bytes, then it lets go. */
static rdmahttp_taken take(rdmahttp_transfer *t, const lib_server *s,
                           uint64_t total, size_t most)
{
    rdmahttp_taken rc = RDMAHTTP_TAKE_FAILED;
    size_t n = 0;
    int failed;

    fake_spare_this_thread(0);
    failed = rdma_conn_kind(s->conn) == RDMA_HDR_READ
                 ? lib_read_head(t, s)
                 : lib_head(t, rdma_conn_number(s->conn), total);
    if (!failed) {
        rc = lib_take_some(t, most, &n);
    }
    rdmahttp_endpoint_release(lib.ep, t);
    fake_spare_this_thread(1);
    ck_assert_int_ne(rc, RDMAHTTP_TAKE_WRONG); /* the server is innocent */
    ck_assert(rc != RDMAHTTP_TAKE_ALL || n == LIB_BODY);
    return rc;
}

/* ---- requests ---------------------------------------------------------- */

static int is_up(lib_server *s)
{
    int up;

    rdma_conn_lock(s->conn);
    up = rdma_conn_state_get(s->conn) == RDMA_CONN_OPEN;
    rdma_conn_unlock(s->conn);
    return up;
}

/* The server's connection of this kind; a new one if it has none. NULL: the client
 * does not let it in. */
static lib_server *connection(rdma_hdr_kind kind)
{
    lib_server *s = &lib.servers[kind == RDMA_HDR_READ];

    if (s->conn && is_up(s)) {
        return s;
    }
    lib_server_free(s);
    if (lib_dial(s, kind)) {
        lib_server_free(s);
        return NULL;
    }
    return s;
}

/* Both are there, or the body comes by TCP. */
static int begin(rdma_hdr_kind kind, rdmahttp_transfer **t, lib_server **s)
{
    *t = ask();
    *s = connection(kind);
    if (*t && !*s) {
        fake_spare_this_thread(0);
        rdmahttp_endpoint_declined(lib.ep, *t);
        rdmahttp_endpoint_release(lib.ep, *t);
        fake_spare_this_thread(1);
    }
    return *t && *s;
}

/* 1: it was served by RDMA. Else the application knows that it was not. */
static int whole(rdma_hdr_kind kind)
{
    rdmahttp_transfer *t;
    lib_server *s;

    if (!begin(kind, &t, &s)) {
        return 0;
    }
    if (kind == RDMA_HDR_WRITE) {
        lib_write_body(s, t, LIB_BODY, RDMA_HDR_FIN);
    }
    return take(t, s, LIB_BODY, SIZE_MAX) == RDMAHTTP_TAKE_ALL;
}

/* In the middle of it the application lets go. */
static void given_up(rdma_hdr_kind kind)
{
    rdmahttp_transfer *t;
    lib_server *s;

    if (!begin(kind, &t, &s)) {
        return;
    }
    if (kind == RDMA_HDR_WRITE) {
        lib_write_body(s, t, LIB_BODY / 2, 0);
    }
    take(t, s, 0, 1);
}

/* A server that does not know the token. */
static void turned_away(void)
{
    lib_server *s = &lib.servers[2];

    s->twist = 1;
    ck_assert_int_eq(lib_dial(s, RDMA_HDR_WRITE), -1);
    lib_server_free(s);
}

/* ---- lives ------------------------------------------------------------- */

/* If it fails, it says why, and does not the next time. */
static void open_endpoint(void)
{
    char why[RDMAHTTP_TEXT_MAX];
    int rc;

    fake_spare_this_thread(0);
    rc = lib_open(why);
    fake_spare_this_thread(1);
    if (rc) {
        ck_assert(fake_met());
        ck_assert_ptr_null(lib.ep);
        ck_assert_int_ne(why[0], '\0');
        lib_go();
    }
}

static int no_transfer(void)
{
    int none;

    rdmahttp_endpoint_lock(lib.ep);
    none = lib.ep->transfers == NULL;
    rdmahttp_endpoint_unlock(lib.ep);
    return none;
}

/* A call has failed, and no other will: what comes by a new connection is served,
 * with every window. */
static void goes_on(void)
{
    lib_server_free(&lib.servers[0]);
    lib_server_free(&lib.servers[1]);
    lib_await(no_transfer, "a transfer is left, and its window with it");
    ck_assert(whole(RDMA_HDR_WRITE));
    ck_assert(whole(RDMA_HDR_READ));
    lib_await(no_transfer, "a transfer is left");
}

/* From opening to closing, when the server has not answered an ABORT yet. 1: a
 * call has failed; nobody has waited for a deadline because of it. */
static int one_life_with_a_failure(const char *function, int error,
                                   unsigned nth)
{
    rdma_conn_time began = rdma_conn_now();
    unsigned kind;
    int failed;

    fake_fail(function, nth, error);
    open_endpoint();
    turned_away();
    for (kind = RDMA_HDR_WRITE; kind <= RDMA_HDR_READ; kind++) {
        whole((rdma_hdr_kind)kind);
        given_up((rdma_hdr_kind)kind);
    }
    if (fake_met()) {
        goes_on();
    }
    given_up(RDMA_HDR_WRITE);
    fake_spare_this_thread(0);
    rdmahttp_endpoint_close(lib.ep);
    fake_spare_this_thread(1);
    lib.ep = NULL;
    ck_assert_int_lt(rdma_conn_now() - began, SOON);
    failed = fake_failed();
    fake_free_kept();
    return failed;
}

START_TEST(any_call_fails)
{
    unsigned step = calls[_i].step;
    unsigned first = 1 + fake_seed_modulo(step);
    unsigned nth = first;

    while (one_life_with_a_failure(calls[_i].function, calls[_i].error, nth)) {
        nth += step;
        lib_teardown(); /* which proves that nothing is left */
        lib_setup();
    }
    ck_assert_uint_gt(nth, first);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = lib_group(s, "calls");

    tcase_add_loop_test(t, any_call_fails, 0,
                        (int)(sizeof(calls) / sizeof(calls[0])));
}

int main(void)
{
    return common_main("client, calls", add);
}
