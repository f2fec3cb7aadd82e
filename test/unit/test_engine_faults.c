/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine when things go wrong: clients that hold, stop or leave, at every
 * step of a body. Each time somebody else must not notice, memory must
 * come back, and the next request must work.
 */
#include "kit.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)

/* ---- leases ------------------------------------------------------------ */

START_TEST(lease_expires_and_the_client_answers)
{
    kit_client *c;

    kit.conf.lease_timeout = 100 * KIT_MS;
    c = kit_go_with_client();
    kit_lease(c, RDMA_HDR_READ, 1, 1000);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_LEASE);
    kit_await_no_bodies();
    kit_next_works(c, RDMA_HDR_READ, 2, 1);
}
END_TEST

START_TEST(lease_expires_and_the_client_is_mute)
{
    kit_client *c;

    kit_deadlines(100 * KIT_MS);
    c = kit_go_with_client();
    kit_client_mute(c, 1);
    kit_lease(c, kit_kinds[_i], 1, 1000);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_LEASE);
    kit_await_closed(c, 0);
    kit_await_slots(0);
    if (_i) {
        kit_await_used(0);
    }
    kit_client_mute(c, 0);
    kit_next_works(c, kit_kinds[_i], 2, 2);
}
END_TEST

/* CONSUMED(fin) was on its way when the lease was revoked. */
START_TEST(last_word_crosses_the_revocation)
{
    kit_client *c;

    kit.conf.lease_timeout = 100 * KIT_MS;
    c = kit_go_with_client();
    kit_client_mute(c, 1);
    kit_lease(c, RDMA_HDR_READ, 1, 1000);
    kit_await_abort(c, 1);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_CONSUMED, 1, 1000, RDMA_HDR_FIN);
    kit_await_no_bodies();
    kit_client_mute(c, 0);
    kit_next_works(c, RDMA_HDR_READ, 2, 1);
}
END_TEST

/* It reads, in more time than a lease has, but with progress. */
START_TEST(progress_keeps_the_lease)
{
    const uint64_t step = 64 * 1024; /* less is none */
    kit_client *c;
    kit_work w;
    unsigned i;

    kit.conf.lease_timeout = 1200 * KIT_MS;
    c = kit_go_with_client();
    w = kit_lease(c, RDMA_HDR_READ, 1, 6 * step);
    for (i = 1; i <= 4; i++) {
        usleep(400 * 1000); /* together more than the lease */
        kit_say(kit_client_conn(c, 0), RDMA_HDR_CONSUMED, 1, i * step, 0);
    }
    kit_take(&w);
    kit_await_no_bodies();
    ck_assert_uint_eq(c->nheard, 0); /* no ABORT */
}
END_TEST

/* A byte now and then is no progress: it would keep the memory for ever. */
START_TEST(crumbs_do_not_keep_the_lease)
{
    kit_client *c;

    kit.conf.lease_timeout = 300 * KIT_MS;
    c = kit_go_with_client();
    kit_lease(c, RDMA_HDR_READ, 1, 200000);
    ck_assert_uint_eq(kit_say_crumbs(c, 1).reason, RDMA_HDR_ABORT_LEASE);
    kit_await_no_bodies();
    ck_assert_uint_eq(kit_count(RDMA_COUNT_LeasesExpired), 1);
}
END_TEST

/* Our last word was ABORT: what is waited for is an answer, not a reader. */
START_TEST(abort_is_not_answered)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time start;

    kit.conf.timeout = 100 * KIT_MS;
    kit.conf.lease_timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    kit_client_mute(c, 1);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 9 * BLOCK);
    kit_start(&w, BLOCK);
    start = rdma_conn_now();
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    kit_await_closed(c, 0);
    ck_assert_int_lt(rdma_conn_now() - start, 5 * KIT_SECOND);
    ck_assert_int_eq(kit_heard_of(c, 1).aborted, 1);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsClosedSilent), 1);
}
END_TEST

/* A slow path: what is waited for, the end of each body and the answer to ABORT,
 * stands behind the WRITEs of others for longer than RdmaTimeout. */
START_TEST(slow_is_not_stuck)
{
    kit_client *c;
    kit_work w;
    kit_gang g;

    kit.conf.memory = 64 * 1024 * 1024;
    kit.conf.timeout = 500 * KIT_MS;
    c = kit_go_with_client();
    w = kit_request(c, RDMA_HDR_WRITE, 1, 9 * BLOCK);
    kit_start(&w, BLOCK);
    kit_freeze(c, 1);
    kit_gang_send(&g, c, RDMA_HDR_WRITE, 6, 2, 4 * BLOCK);
    kit_await_stuck(c, 0, 14);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    while (!kit_heard_of(c, 1).aborted) {
        ck_assert_int_eq(kit_client_conn(c, 0)->closed, 0);
        kit_crawl(c);
        usleep(40 * 1000);
    }
    kit_freeze(c, 0);
    kit_gang_take(&g);
    kit_await_all_back(RDMA_HDR_WRITE);
    kit_next_works(c, RDMA_HDR_WRITE, 8, 1);
}
END_TEST

/* ---- the client gives up ----------------------------------------------- */

/* Bodies that a worker is at: ACTIVE once a WRITE has been posted, else
 * RESERVED. */
static const struct {
    rdma_hdr_kind kind;
    uint64_t total, filled;
    unsigned active; /* 1 or 0 */
} begun[] = {{RDMA_HDR_WRITE, 2 * BLOCK, 0, 0},
             {RDMA_HDR_READ, 2 * BLOCK, 0, 0},
             {RDMA_HDR_WRITE, 2 * BLOCK, 10, 0},
             {RDMA_HDR_READ, 2 * BLOCK, 10, 0},
             {RDMA_HDR_WRITE, 9 * BLOCK, 3 * BLOCK, 1}};
#define BEGUN ((int)(sizeof(begun) / sizeof(begun[0])))

static kit_work begin(kit_client *c, int i)
{
    kit_work w = kit_request(c, begun[i].kind, 1, begun[i].total);

    kit_start(&w, begun[i].filled);
    return w;
}

START_TEST(client_aborts_what_is_begun)
{
    kit_client *c = kit_go_with_client();
    kit_work w = begin(c, _i);

    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_ANSWER);
    ck_assert_int_eq(kit_fill(&w, w.total - w.filled), -1);
    ck_assert_uint_eq(w.conn, 1); /* it has been spoken of */
    kit_await_all_back(w.kind);
    kit_next_works(c, w.kind, 2, 1);
}
END_TEST

START_TEST(client_aborts_what_is_said)
{
    kit_client *c = kit_go_with_client();

    kit_client_mute(c, 1);
    kit_lease(c, kit_kinds[_i], 1, 1000);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    kit_await_no_bodies();
    kit_client_mute(c, 0);
    kit_next_works(c, kit_kinds[_i], 2, 1);
}
END_TEST

/* One of many is given up; the others go on. */
START_TEST(client_aborts_one_of_eight)
{
    kit_client *c;
    kit_work w[8];
    unsigned i;

    kit.conf.memory = 32 * 1024 * 1024;
    c = kit_go_with_client();
    for (i = 0; i < 8; i++) {
        w[i] = kit_request(c, RDMA_HDR_WRITE, i + 1, 5 * BLOCK);
        w[i].at = i * 6 * BLOCK;
        kit_start(&w[i], 2 * BLOCK);
    }
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 4, 0, 0);
    kit_await_abort(c, 4);
    for (i = 0; i < 8; i++) {
        int rc = kit_fill(&w[i], 3 * BLOCK) || kit_finish(&w[i]);

        ck_assert_int_eq(rc, i == 3);
        if (!rc) {
            kit_take(&w[i]);
        }
    }
    kit_await_all_back(RDMA_HDR_WRITE);
}
END_TEST

/* ---- the server gives up ----------------------------------------------- */

/* Nobody waits for its WRITEs any more; their blocks come back all the same. */
START_TEST(worker_abandons_what_is_begun)
{
    kit_client *c = kit_go_with_client();
    kit_work w = begin(c, _i);

    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    if (begun[_i].active) {
        ck_assert_uint_eq(w.conn, 1);
        ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_CONTENT);
    }
    else {
        ck_assert_uint_eq(w.conn, 0);
    }
    kit_await_all_back(w.kind);
    kit_next_works(c, w.kind, 2, 1);
    /* of id 1 nothing, unless it was active */
    ck_assert_uint_eq(c->nheard,
                      begun[_i].active + (w.kind == RDMA_HDR_WRITE ? 1u : 0u));
}
END_TEST

START_TEST(worker_finishes_too_early)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, kit_kinds[_i], 1, 2 * BLOCK);

    kit_start(&w, 2 * BLOCK - 1);
    ck_assert_int_eq(kit_finish(&w), -1); /* a short file */
    ck_assert_uint_eq(w.conn, _i ? 0 : 1);
    kit_await_no_bodies();
    kit_next_works(c, w.kind, 2, 1);
}
END_TEST

/* ---- the connection is lost -------------------------------------------- */

enum { AFTER_BEGIN, AFTER_OPEN, AFTER_SOME, AFTER_ALL, AFTER_FINISH, STEPS };

START_TEST(connection_lost)
{
    int step = _i % STEPS;
    rdma_hdr_kind kind = kit_kinds[_i / STEPS % 2];
    int politely = _i / STEPS / 2;
    kit_client *c = kit_go_with_client();
    kit_client *other = kit_client_new("192.0.2.2");
    kit_work w = kit_request(c, kind, 1, 3 * BLOCK);
    kit_work o = kit_request(other, kind, 1, 3 * BLOCK);
    int rc;

    kit_start(&o, BLOCK);
    kit_client_mute(c, 1);
    rc = kit_begin(&w);
    ck_assert_int_eq(rc, 0);
    if (step == AFTER_BEGIN) {
        kit_lose(c, politely);
    }
    rc = kit_open(&w);
    if (step == AFTER_OPEN) {
        kit_lose(c, politely);
    }
    rc = rc || kit_fill(&w, 2 * BLOCK);
    if (step == AFTER_SOME) {
        kit_lose(c, politely);
    }
    rc = rc || kit_fill(&w, BLOCK);
    if (step == AFTER_ALL) {
        kit_lose(c, politely);
    }
    rc = rc || kit_finish(&w);
    if (step == AFTER_FINISH) {
        ck_assert_int_eq(rc, 0);
        kit_lose(c, politely);
    }
    ck_assert(rc == 0 || w.step);
    if (step < AFTER_SOME) { /* it may have got as far as a WRITE */
        ck_assert(w.conn == 0 || kind == RDMA_HDR_WRITE);
    }
    kit_await_slots(1);
    kit_complete(&o);
    kit_await_all_back(kind);
    kit_client_mute(c, 0);
    kit_next_works(c, kind, 2, 2);
}
END_TEST

/* Everything that was made on it goes, also what no connection uses, or the
 * kernel would wait for us; afterwards all works again. */
START_TEST(device_is_removed)
{
    rdma_hdr_kind kind = kit_kinds[_i & 1];
    kit_client *c = kit_go_with_client();
    kit_work w = kit_lease(c, kind, 1, 5000);

    if (_i & 2) { /* an idle one, else with a lease */
        kit_take(&w);
        kit_await_no_bodies();
    }
    fake_remove_device();
    kit_await_slots(0);
    kit_await_used(0);
    kit_await_no_devices();
    kit_next_works(c, kind, 2, 2);
}
END_TEST

/* Some drivers say so for as long as the channel is there. */
START_TEST(channel_is_broken)
{
    kit_client *c = kit_go_with_client();
    clock_t used;

    kit_pass(c, RDMA_HDR_READ, 1, 5000);
    kit_await_no_bodies();
    kit_break_channel();
    usleep(50 * 1000);
    used = clock();
    usleep(200 * 1000);
    ck_assert_int_lt(clock() - used, CLOCKS_PER_SEC / 20); /* nobody spins */
    fake_remove_device();
    kit_await_slots(0);
    kit_await_no_devices();
    kit_next_works(c, RDMA_HDR_READ, 2, 2);
}
END_TEST

/* The same request comes twice, and the first has a connection but no body yet, or
 * its connection is gone: things may arrive late. */
START_TEST(id_used_twice_when_nothing_runs)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_work again = kit_request(c, kit_kinds[_i], 1, 1000);

    ck_assert_int_eq(kit_begin(&w), 0);
    ck_assert_int_eq(kit_serve(&again), -1);
    ck_assert_str_eq(again.step, "use_id");
    ck_assert_uint_eq(again.conn, kit_client_conn(c, 0)->number);
    ck_assert_int_eq(kit_open(&w), 0);
    kit_complete(&w);
    kit_lose(c, 0);
    kit_await_slots((unsigned)_i); /* that of the other kind stays */
    again = kit_request(c, kit_kinds[_i], 1, 1000);
    ck_assert_int_eq(kit_serve(&again), -1);
    ck_assert_str_eq(again.step, "use_id");
    ck_assert_uint_eq(again.conn, w.head.conn);
}
END_TEST

START_TEST(connection_lost_while_a_worker_waits)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time start = rdma_conn_now();

    kit.conf.timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    kit_get_stuck(&w, c, 2);
    kit_lose(c, _i);
    kit_join(&w);
    ck_assert_ptr_nonnull(w.step);
    ck_assert_uint_eq(w.conn, 1);
    ck_assert_int_lt(rdma_conn_now() - start, 10 * KIT_SECOND);
    kit_await_slots(0);
    kit_await_all_blocks();
}
END_TEST

/* A stopped client: no event ever says so. */
START_TEST(client_has_stopped)
{
    kit_client *c;
    kit_work w;

    kit_deadlines(100 * KIT_MS);
    c = kit_go_with_client();
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    kit_await_no_bodies(); /* or its lease would end the connection */
    kit_freeze(c, 1);
    w = kit_request(c, RDMA_HDR_WRITE, 2, _i ? 30 * BLOCK : 1000);
    kit_serve(&w);
    if (_i) { /* a small one may be on its way, for all we know */
        ck_assert_str_eq(w.step, "space");
    }
    if (w.step) {
        ck_assert_uint_eq(w.conn, 1);
    }
    kit_await_all_blocks(); /* none of them before its WRITE has ended */
    kit_await_slots(0);
    kit_next_works(c, RDMA_HDR_WRITE, 3, 2);
}
END_TEST

START_TEST(client_stops_with_a_lease)
{
    kit_client *c;

    kit_deadlines(100 * KIT_MS);
    c = kit_go_with_client();
    kit_lease(c, RDMA_HDR_READ, 1, 1000);
    kit_freeze(c, 1);
    kit_await_slots(0);
    kit_await_used(0);
}
END_TEST

/* What was received before the loss counts, even where the device takes no
 * receives any more. */
START_TEST(fin_before_the_loss_counts)
{
    kit_client *c = kit_go_with_client();
    kit_work w;

    fake_refuse_dead_posts(1);
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    fake_settle();
    kit_client_pause(c, 1);
    w = kit_lease(c, RDMA_HDR_WRITE, 2, 1000);
    fake_settle(); /* it has landed */
    fake_kill(rdma_conn_id(c->conns[0].conn));
    kit_client_pause(c, 0);
    kit_take(&w);
}
END_TEST

/* ---- everybody is lost at once ----------------------------------------- */

enum { CROWD = 33 }; /* clients, each with a connection of either kind */

typedef struct victim {
    kit_client *client;
    kit_work works[2]; /* streams, by kind */
} victim;

/* Until the client has been told of so much that its stream has to wait. */
static void await_waiting(const victim *v)
{
    kit_client *c = v->client;

    pthread_mutex_lock(&c->lock);
    while (kit_entry(c, 3)->written < RDMA_BODY_RING
           || kit_entry(c, 4)->noffers < 1) {
        kit_sleep_on(c, "two streams that wait");
    }
    pthread_mutex_unlock(&c->lock);
}

/* In either kind a lease, and a worker that waits for its stream to be taken. */
static void busy(victim *v, unsigned i)
{
    char addr[16];
    unsigned k;

    snprintf(addr, sizeof(addr), "192.0.2.%u", i + 1);
    v->client = kit_client_new(addr);
    kit_client_mute(v->client, 1);
    for (k = 0; k < 2; k++) {
        kit_lease(v->client, kit_kinds[k], k + 1, 5000);
        v->works[k] = kit_request(v->client, kit_kinds[k], k + 3, 9 * BLOCK);
        v->works[k].stream = 1;
        v->works[k].window = RDMA_BODY_RING;
        v->works[k].at = BLOCK;
        kit_run(&v->works[k], kit_serve_thread);
    }
}

/* The progress thread hears of all of them together; workers by themselves. Some
 * say farewell, some are cut off. */
static void lose_all(victim *victims)
{
    unsigned n = 2 * CROWD;
    unsigned order[2 * CROWD];
    unsigned i;

    for (i = 0; i < n; i++) {
        unsigned at = fake_pick(i + 1);

        order[i] = i;
        order[i] = order[at];
        order[at] = i;
    }
    kit_stop_progress(1);
    for (i = 0; i < n; i++) {
        kit_conn *k =
            kit_client_conn(victims[order[i] / 2].client, order[i] % 2);

        if (fake_pick(2)) {
            fake_kill(rdma_conn_id(k->conn));
        }
        else {
            kit_disconnect(k);
        }
    }
    kit_stop_progress(0);
}

START_TEST(everybody_is_lost_at_once)
{
    static victim victims[CROWD];
    rdma_conn_time began;
    unsigned i;

    kit.conf.memory = 256 * 1024 * 1024;
    kit.conf.max_connections = 2 * CROWD;
    kit_deadlines(10 * KIT_PATIENT); /* nobody waits for one */
    kit_go();
    for (i = 0; i < CROWD; i++) {
        busy(&victims[i], i);
    }
    for (i = 0; i < CROWD; i++) {
        await_waiting(&victims[i]);
    }
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsMade), 2 * CROWD);
    began = rdma_conn_now();
    lose_all(victims);
    for (i = 0; i < 2 * CROWD; i++) {
        kit_work *w = &victims[i / 2].works[i % 2];

        kit_join(w);
        ck_assert_ptr_nonnull(w->step);
        ck_assert_uint_eq(w->conn, victims[i / 2].client->conns[i % 2].number);
    }
    kit_await_slots(0);
    ck_assert_int_lt(rdma_conn_now() - began, KIT_PATIENT);
    /* All has come back, and nothing twice: what was given back twice would be
     * there twice. */
    kit_await_all_blocks();
    kit_await_used((unsigned)kit.conf.memory / 2);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_LeasesOpen), 0);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ArenasOpen), 0);
    for (i = 0; i < 2; i++) {
        kit_client_mute(victims[i].client, 0);
        kit_next_works(victims[i].client, kit_kinds[i], 5, 3);
    }
    kit_pass(kit_client_new("192.0.2.99"), RDMA_HDR_WRITE, 1, BLOCK);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "leases");

    tcase_add_test(t, lease_expires_and_the_client_answers);
    tcase_add_loop_test(t, lease_expires_and_the_client_is_mute, 0, 2);
    tcase_add_test(t, last_word_crosses_the_revocation);
    tcase_add_test(t, progress_keeps_the_lease);
    tcase_add_test(t, crumbs_do_not_keep_the_lease);
    tcase_add_test(t, abort_is_not_answered);
    tcase_add_test(t, slow_is_not_stuck);
    t = kit_group(s, "giving up");
    tcase_add_loop_test(t, client_aborts_what_is_begun, 0, BEGUN);
    tcase_add_loop_test(t, client_aborts_what_is_said, 0, 2);
    tcase_add_test(t, client_aborts_one_of_eight);
    tcase_add_loop_test(t, worker_abandons_what_is_begun, 0, BEGUN);
    tcase_add_loop_test(t, worker_finishes_too_early, 0, 2);
    t = kit_group(s, "loss");
    tcase_add_loop_test(t, connection_lost, 0, STEPS * 4);
    tcase_add_loop_test(t, device_is_removed, 0, 4);
    tcase_add_test(t, channel_is_broken);
    tcase_add_loop_test(t, id_used_twice_when_nothing_runs, 0, 2);
    tcase_add_loop_test(t, connection_lost_while_a_worker_waits, 0, 2);
    tcase_add_loop_test(t, client_has_stopped, 0, 2);
    tcase_add_test(t, client_stops_with_a_lease);
    tcase_add_test(t, fin_before_the_loss_counts);
    tcase_add_test(t, everybody_is_lost_at_once);
}

int main(void)
{
    return common_main("engine, faults", add);
}
