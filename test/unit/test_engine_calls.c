/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine when calls fail: each call of each function in turn, through a life
 * from start to stop.
 */
#include "kit.h"

#include <errno.h>

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)

/* ---- calls that fail --------------------------------------------------- */

static const struct {
    const char *function;
    int error;
} calls[] = {{"ibv_alloc_pd", ENOMEM},
             {"ibv_reg_mr", ENOMEM},
             {"ibv_create_comp_channel", ENOMEM},
             {"ibv_create_cq", ENOMEM},
             {"ibv_req_notify_cq", ENOMEM},
             {"ibv_post_send", ENOMEM},
             {"ibv_post_send", ENOTCONN}, /* and queued all the same */
             {"ibv_post_recv", ENOMEM},
             {"rdma_create_event_channel", ENOMEM},
             {"rdma_create_id", ENOMEM},
             {"rdma_bind_addr", EADDRNOTAVAIL},
             {"rdma_resolve_addr", ENOMEM},
             {"rdma_resolve_route", ENOMEM},
             {"rdma_create_qp", ENOMEM},
             {"rdma_connect", ENOMEM},
             {"rdma_migrate_id", ENOMEM},
             {"rdma_disconnect", ENOMEM},
             {"rdma_get_cm_event", ENOMEM},
             {"calloc", ENOMEM},
             {"mmap", ENOMEM},
             {"pthread_create", EAGAIN},
             {"eventfd", EMFILE}};

/* What one request of each sort comes to, whatever fails: its body, or an error
 * that is one. Never a false success: a head has its body. */
static void whole(kit_client *c, rdma_hdr_kind kind, uint32_t id)
{
    kit_work w = kit_request(c, kind, id, 2 * BLOCK + 5);

    kit_serve(&w);
    if (!w.step && kind == RDMA_HDR_WRITE) {
        fake_settle();
        ck_assert(kit_body_is_right(&w));
    }
    if (!w.step && kind == RDMA_HDR_READ
        && kit_read(kit_client_conn(c, w.head.conn - 1), &w.head, 0) == 0) {
        ck_assert(kit_body_is_right(&w));
    }
}

static void streamed(kit_client *c, rdma_hdr_kind kind, uint32_t id)
{
    kit_work w = kit_request(c, kind, id, 3 * BLOCK + 5);
    uint64_t taken;

    w.stream = w.unknown = 1;
    w.window = RDMA_BODY_RING;
    w.pause = BLOCK;
    kit_run(&w, kit_serve_thread);
    taken = kit_take_stream(&w, 0, UINT64_MAX);
    kit_join(&w);
    /* The connection may be lost when all has been said. */
    ck_assert(w.step || taken == w.total || c->conns[w.head.conn - 1].closed);
}

static void given_up(kit_client *c, rdma_hdr_kind kind, uint32_t id, int by_us)
{
    kit_work w = kit_request(c, kind, id, 9 * BLOCK);

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
    kit_say(kit_client_conn(c, w.head.conn - 1), RDMA_HDR_ABORT, id, 0, 0);
    /* In kind write it may be through before it hears of that. */
    ck_assert(kit_fill(&w, 8 * BLOCK) || kit_finish(&w)
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

/* From start to stop, with a lease that is still open. 1: a call has failed. */
static int one_life_with_a_failure(const char *function, int error,
                                   unsigned nth)
{
    kit_client *c;
    pthread_t thread;

    kit_deadlines(100 * KIT_MS);
    kit.conf.memory = 16 * 1024 * 1024;
    kit.conf.max_streams = 4;
    kit.conf.connect_timeout = 300 * KIT_MS;
    c = kit_client_new("192.0.2.1");
    fake_fail(function, nth, error);
    if (rdma_cache_create(&kit.conf, &kit.cache) != APR_SUCCESS) {
        kit.cache = NULL; /* this child serves over TCP */
        return fake_failed();
    }
    /* Of its own: this thread is the client's, and spared. */
    pthread_create(&thread, NULL, one_of_each_sort, c);
    pthread_join(thread, NULL);
    kit_stop();
    return fake_failed();
}

START_TEST(any_call_fails)
{
    unsigned nth = 1;

    while (one_life_with_a_failure(calls[_i].function, calls[_i].error, nth)) {
        nth += nth < 12 ? 1 : 11; /* the receives are many, and alike */
        kit_teardown(); /* which proves that nothing is left */
        kit_setup();
    }
    ck_assert_uint_gt(nth, 1);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "calls");

    tcase_add_loop_test(t, any_call_fails, 0,
                        (int)(sizeof(calls) / sizeof(calls[0])));
}

int main(void)
{
    return kit_main("engine, calls", add);
}
