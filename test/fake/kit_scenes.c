/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What many tests begin with, and steps that they have in common.
 */
#include "kit.h"

#include <unistd.h>

const rdma_hdr_kind kit_kinds[2] = {RDMA_HDR_WRITE, RDMA_HDR_READ};

kit_client *kit_go_with_client(void)
{
    kit_go();
    return kit_client_new("192.0.2.1");
}

void kit_deadlines(rdma_conn_time each)
{
    kit.conf.timeout = each;
    kit.conf.lease_timeout = each;
}

/* ---- requests ---------------------------------------------------------- */

kit_work kit_lease(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                   uint64_t total)
{
    kit_work w = kit_request(c, kind, id, total);

    kit_serve(&w);
    ck_assert_msg(w.step == NULL, "id %u: %s has failed (%d)", w.id, w.step,
                  (int)w.why);
    return w;
}

kit_work kit_pass(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                  uint64_t total)
{
    kit_work w = kit_lease(c, kind, id, total);

    kit_take(&w);
    return w;
}

void kit_await_all_back(rdma_hdr_kind kind)
{
    kit_await_no_bodies();
    if (kind == RDMA_HDR_WRITE) {
        kit_await_all_blocks();
    }
}

void kit_next_works(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                    unsigned nconns)
{
    kit_be_patient();
    kit_pass(c, kind, id, 5000);
    kit_await_all_back(kind);
    ck_assert_uint_eq(c->nconns, nconns);
}

void kit_declined(kit_client *c, rdma_hdr_kind kind, uint32_t id,
                  uint64_t total, const char *step, rdma_hdr_declined why)
{
    kit_work w = kit_request(c, kind, id, total);

    ck_assert_int_eq(kit_serve(&w), -1);
    ck_assert_str_eq(w.step, step);
    ck_assert_int_eq(w.why, why);
}

void kit_start(kit_work *w, uint64_t bytes)
{
    ck_assert_int_eq(kit_begin(w), 0);
    ck_assert_int_eq(kit_open(w), 0);
    ck_assert_int_eq(kit_fill(w, bytes), 0);
}

void kit_complete(kit_work *w)
{
    ck_assert_int_eq(kit_fill(w, w->total - w->filled), 0);
    ck_assert_int_eq(kit_finish(w), 0);
    kit_take(w);
}

/* ---- workers on threads ------------------------------------------------ */

void kit_run(kit_work *w, void *(*steps)(void *work))
{
    ck_assert_int_eq(pthread_create(&w->thread, NULL, steps, w), 0);
}

void kit_join(kit_work *w)
{
    ck_assert_int_eq(pthread_join(w->thread, NULL), 0);
}

void kit_gang_send(kit_gang *g, kit_client *c, rdma_hdr_kind kind, unsigned n,
                   uint32_t first_id, uint64_t total)
{
    unsigned i;

    g->n = n;
    for (i = 0; i < n; i++) {
        g->works[i] = kit_request(c, kind, first_id + i, total - i);
        g->works[i].at = i * (KIT_WINDOW / n);
        kit_run(&g->works[i], kit_serve_thread);
    }
}

void kit_gang_join(kit_gang *g)
{
    unsigned i;

    for (i = 0; i < g->n; i++) {
        kit_join(&g->works[i]);
    }
}

void kit_gang_take(kit_gang *g)
{
    unsigned i;

    kit_gang_join(g);
    for (i = 0; i < g->n; i++) {
        kit_take(&g->works[i]);
    }
}

/* ---- what befalls the client ------------------------------------------- */

static struct rdma_cm_id *first_id(kit_client *c)
{
    return rdma_conn_id(kit_client_conn(c, 0)->conn);
}

void kit_freeze(kit_client *c, int on)
{
    fake_freeze(first_id(c), on);
}

void kit_crawl(kit_client *c)
{
    fake_let_land(first_id(c), 1);
}

void kit_lose(kit_client *c, int politely)
{
    if (politely) {
        kit_disconnect(kit_client_conn(c, 0));
    }
    else {
        fake_kill(first_id(c));
    }
}

kit_heard kit_say_crumbs(kit_client *c, uint32_t id)
{
    kit_conn *k = kit_client_conn(c, 0);
    rdma_conn_time until = rdma_conn_now() + 10 * KIT_SECOND;
    uint64_t bytes = 0;

    while (!kit_heard_of(c, id).aborted) {
        ck_assert_int_lt(rdma_conn_now(), until);
        kit_say(k, RDMA_HDR_CONSUMED, id, ++bytes, 0);
        usleep(20 * 1000);
    }
    return kit_heard_of(c, id);
}

void kit_get_stuck(kit_work *w, kit_client *c, uint32_t id)
{
    kit_freeze(c, 1);
    *w = kit_request(c, RDMA_HDR_WRITE, id, (uint64_t)30 * RDMA_MEM_BLOCK);
    kit_run(w, kit_serve_thread);
    kit_await_stuck(c, 0, 4);
}

void kit_fall_in(kit_work *w, const char *addr)
{
    kit_client *c = kit_client_new(addr);

    fake_route_to(kit_client_port(c), FAKE_BLOCKED);
    *w = kit_request(c, RDMA_HDR_WRITE, 1, 1);
    kit_run(w, kit_serve_thread);
}

void kit_await_connect(const kit_client *c)
{
    while (fake_connects(kit_client_port(c)) == 0) {
        usleep(1000);
    }
}
