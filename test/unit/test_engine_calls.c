/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine when calls fail: each call of each function in turn, through a life
 * from start to stop.
 */
#include "kit.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)

static void short_deadlines(void)
{
    kit.conf.timeout = 100 * KIT_MS;
    kit.conf.lease_timeout = 100 * KIT_MS;
}

/* ---- calls that fail --------------------------------------------------- */

static const char *const functions[] = {"ibv_alloc_pd",
                                        "ibv_reg_mr",
                                        "ibv_create_comp_channel",
                                        "ibv_create_cq",
                                        "ibv_req_notify_cq",
                                        "ibv_post_send",
                                        "ibv_post_recv",
                                        "rdma_create_event_channel",
                                        "rdma_create_id",
                                        "rdma_resolve_addr",
                                        "rdma_resolve_route",
                                        "rdma_create_qp",
                                        "rdma_connect",
                                        "rdma_migrate_id",
                                        "rdma_disconnect",
                                        "rdma_get_cm_event",
                                        "calloc",
                                        "pthread_create",
                                        "eventfd"};

/* 1: a call has failed. */
static int one_request_with_a_failure(const char *function, unsigned nth)
{
    kit_client *c;
    kit_work w;
    pthread_t thread;
    unsigned kind;
    int hit;

    short_deadlines();
    kit.conf.connect_timeout = 300 * KIT_MS;
    kit.conf.idle_timeout = 10 * KIT_MS;
    c = kit_client_new("192.0.2.1");
    fake_fail(function, nth, ENOMEM);
    if (rdma_cache_create(&kit.conf, kit.pool, &kit.cache) != APR_SUCCESS) {
        kit.cache = NULL; /* this child serves over TCP */
        return fake_failed();
    }
    for (kind = RDMA_HDR_WRITE; kind <= RDMA_HDR_READ; kind++) {
        w = kit_request(c, (rdma_hdr_kind)kind, kind, 2 * BLOCK + 5);
        pthread_create(&thread, NULL, kit_serve_thread, &w);
        pthread_join(thread, NULL);
        /* Never a false success: a head has its body. */
        if (!w.step && kind == RDMA_HDR_WRITE) {
            fake_settle();
            ck_assert(kit_body_is_right(&w));
        }
    }
    kit_await_slots(0);
    hit = fake_failed();
    return hit;
}

START_TEST(any_call_fails)
{
    unsigned nth = 1;

    while (one_request_with_a_failure(functions[_i], nth)) {
        nth += nth < 12 ? 1 : 11; /* the receives are many, and alike */
        kit_teardown();
        kit_setup();
    }
    ck_assert_uint_gt(nth, 1);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "calls");

    tcase_add_loop_test(t, any_call_fails, 0,
                        (int)(sizeof(functions) / sizeof(functions[0])));
}

int main(void)
{
    return kit_main("engine, calls", add);
}
