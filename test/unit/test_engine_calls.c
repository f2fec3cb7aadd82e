/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine when calls fail: each call of each function in turn, through a life
 * from start to stop.
 */
#include "kit.h"

#include <errno.h>

#include "../../rdma_cache_private.h"

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)

/* ---- calls that fail --------------------------------------------------- */

/* The N-th call fails, with N from 1 until there is none. A function that a life
 * calls often has a step of 2: seeds 1 and 2, which a check runs, see every N
 * together, and so do 3 and 4. (What initialises a mutex or a condition variable
 * cannot fail here, and is not asked.) */
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
             {"ibv_post_send", ENOMEM, 2},
             {"ibv_post_send", ENOTCONN, 2}, /* and queued all the same */
             {"ibv_post_recv", ENOMEM, 2},
             {"rdma_create_event_channel", ENOMEM, 1},
             {"rdma_create_id", ENOMEM, 1},
             {"rdma_bind_addr", EADDRNOTAVAIL, 1},
             {"rdma_resolve_addr", ENOMEM, 1},
             {"rdma_resolve_route", ENOMEM, 1},
             {"rdma_create_qp", ENOMEM, 1},
             {"rdma_connect", ENOMEM, 1},
             {"rdma_migrate_id", ENOMEM, 1},
             {"rdma_disconnect", ENOMEM, 1},
             {"rdma_get_cm_event", ENOMEM, 1},
             {"calloc", ENOMEM, 1},
             {"mmap", ENOMEM, 1},
             {"fcntl", EBADF, 1},
             {"apr_pool_create", ENOMEM, 1},
             {"pthread_create", EAGAIN, 1},
             {"eventfd", EMFILE, 1}};

/* What one request of each sort comes to, whatever fails: its body, or an error
 * that is one. Never a false success: a head has its body. */
static void whole(kit_client *c, rdma_hdr_kind kind, uint32_t id)
{
    kit_work w = kit_request(c, kind, id, BLOCK + 5);

    kit_serve(&w);
    if (!w.step && kind == RDMA_HDR_WRITE) {
        fake_settle();
        ck_assert(kit_body_is_right(&w));
    }
    if (!w.step && kind == RDMA_HDR_READ
        && kit_read(kit_client_conn(c, w.head.conn - 1), &w.head, 0) == 0) {
        ck_assert(kit_body_is_right(&w));
        kit_say(kit_client_conn(c, w.head.conn - 1), RDMA_HDR_CONSUMED, id,
                w.total, RDMA_HDR_FIN);
    }
}

static void streamed(kit_client *c, rdma_hdr_kind kind, uint32_t id)
{
    kit_work w = kit_request(c, kind, id, BLOCK + 5);
    uint64_t taken;

    w.stream = w.unknown = 1;
    w.window = RDMA_BODY_RING;
    w.pause = BLOCK / 2;
    kit_run(&w, kit_serve_thread);
    taken = kit_take_stream(&w, 0, UINT64_MAX);
    kit_join(&w);
    /* The connection may be lost when all has been said. */
    ck_assert(w.step || taken == w.total || c->conns[w.head.conn - 1].closed);
}

static void given_up(kit_client *c, rdma_hdr_kind kind, uint32_t id, int by_us)
{
    kit_work w = kit_request(c, kind, id, 5 * BLOCK);

    w.unknown = w.stream = 1;
    w.window = KIT_WINDOW;
    if (kit_begin(&w) || kit_open(&w) || kit_fill(&w, BLOCK)
        || kit_flush(&w)) {
        return;
    }
    if (by_us) {
        kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
        return;
    }
    if (w.headed) { /* else the connection is lost, as the next step says */
        kit_say(kit_client_conn(c, w.head.conn - 1), RDMA_HDR_ABORT, id, 0, 0);
    }
    /* In kind write it may be through before it hears of that. */
    ck_assert(kit_fill(&w, 4 * BLOCK) || kit_finish(&w)
              || kind == RDMA_HDR_WRITE);
}

static void *one_of_each_sort(void *arg)
{
    kit_client *c = arg;
    uint32_t id = 0;
    unsigned k;

    for (k = RDMA_HDR_WRITE; k <= RDMA_HDR_READ; k++) {
        rdma_hdr_kind kind = (rdma_hdr_kind)k;

        whole(c, kind, ++id);
        streamed(c, kind, ++id);
        given_up(c, kind, ++id, 0);
        given_up(c, kind, ++id, 1);
    }
    return NULL;
}

/* Other connections, at once. Some may be open at the client's end only, or have
 * never been. */
static void start_over(kit_client *c)
{
    unsigned i;
    unsigned n;

    pthread_mutex_lock(&c->lock);
    n = c->nconns;
    pthread_mutex_unlock(&c->lock);
    for (i = 0; i < n; i++) {
        kit_disconnect(&c->conns[i]);
    }
    kit_await_slots(0);
    kit_age_back_off(c, RDMA_HDR_WRITE);
    kit_age_back_off(c, RDMA_HDR_READ);
    kit_end_pause();
}

/* A call has failed, and no other will: what comes next is served, or goes over
 * TCP before its client has been told anything; and it is served, when nothing of
 * what the failure has left is in use any more. */
static void next_one(kit_client *c, rdma_hdr_kind kind, uint32_t id)
{
    kit_work w = kit_request(c, kind, id, 1000);

    kit_end_pause();
    if (kit_serve(&w)) {
        ck_assert(!w.headed);
        start_over(c);
        w = kit_request(c, kind, id + 1, 1000);
        kit_serve(&w);
    }
    kit_take(&w);
}

/* Without threads there is nothing but TCP, for as long as a child lives. */
static void goes_on(kit_client *c)
{
    if (kit.cache->refused) {
        kit_declined(c, RDMA_HDR_WRITE, 100, 1, "acquire", RDMA_HDR_BUSY);
        return;
    }
    next_one(c, RDMA_HDR_WRITE, 100);
    next_one(c, RDMA_HDR_READ, 110);
    kit_await_no_bodies();
    start_over(c);
    kit_await_all_blocks();
}

/* From start to stop, with a lease that is still open. 1: a call has failed; nobody
 * has waited for a deadline because of it. */
static int one_life_with_a_failure(const char *function, int error,
                                   unsigned nth)
{
    rdma_conn_time began = rdma_conn_now();
    kit_client *c;
    kit_work lease;
    pthread_t thread;
    int failed;

    kit_deadlines(KIT_PATIENT);
    kit.conf.memory = 16 * 1024 * 1024;
    kit.conf.max_streams = 4;
    kit.conf.connect_timeout = KIT_PATIENT;
    c = kit_client_new("192.0.2.1");
    fake_fail(function, nth, error);
    fake_spare_this_thread(0);
    if (rdma_cache_create(&kit.conf, &kit.cache) != APR_SUCCESS) {
        kit_go(); /* that child serves over TCP; another one would not */
    }
    fake_spare_this_thread(1); /* which is the client's from here on */
    pthread_create(&thread, NULL, one_of_each_sort, c);
    pthread_join(thread, NULL);
    if (fake_met()) {
        goes_on(c);
    }
    lease = kit_request(c, RDMA_HDR_READ, 120, 1000);
    kit_serve(&lease);
    fake_spare_this_thread(0);
    kit_stop();
    fake_spare_this_thread(1);
    ck_assert_int_lt(rdma_conn_now() - began, KIT_PATIENT / 2);
    failed = fake_failed();
    /* What the device keeps stays counted for as long as the child lives. */
    rdma_count_sub(RDMA_COUNT_MemoryInUse, fake_free_kept());
    return failed;
}

START_TEST(any_call_fails)
{
    unsigned step = calls[_i].step;
    unsigned first = 1 + fake_seed_modulo(step);
    unsigned nth = first;

    while (one_life_with_a_failure(calls[_i].function, calls[_i].error, nth)) {
        nth += step;
        kit_teardown(); /* which proves that nothing is left */
        kit_setup();
    }
    ck_assert_uint_gt(nth, first);
}
END_TEST

/* A worker must not sleep when no completion would wake it. */
START_TEST(worker_cannot_be_woken)
{
    kit_client *c;
    kit_work w;

    kit_deadlines(10 * KIT_PATIENT);
    c = kit_go_with_client();
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    kit_await_no_bodies(); /* nothing more will come, or be armed for it */
    fake_fail("ibv_req_notify_cq", 1, EIO);
    kit_freeze(c, 1);
    w = kit_request(c, RDMA_HDR_WRITE, 2, 30 * BLOCK);
    kit_run(&w, kit_serve_thread);
    kit_await_slots(0);
    kit_join(&w);
    ck_assert(fake_failed());
    ck_assert_uint_eq(w.conn, 1);
    kit_next_works(c, RDMA_HDR_WRITE, 3, 2);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "calls");

    tcase_add_loop_test(t, any_call_fails, 0,
                        (int)(sizeof(calls) / sizeof(calls[0])));
    tcase_add_test(t, worker_cannot_be_woken);
}

int main(void)
{
    return common_main("engine, calls", add);
}
