/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine when things go wrong: clients that hold, stop or leave, at every
 * step of a body. Each time somebody else must not notice, memory must
 * come back, and the next request must work.
 */
#include "kit.h"

#include <string.h>
#include <unistd.h>

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)

static void short_deadlines(void)
{
    kit.conf.timeout = 100 * KIT_MS;
    kit.conf.lease_timeout = 100 * KIT_MS;
}

/* ---- leases ------------------------------------------------------------ */

START_TEST(lease_expires_and_the_client_answers)
{
    kit_client *c;
    kit_work w;
    kit_heard h;

    kit.conf.lease_timeout = 100 * KIT_MS;
    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_READ, 1, 1000);
    kit_serve(&w);
    h = kit_await_abort(c, 1);
    ck_assert_uint_eq(h.reason, RDMA_HDR_ABORT_LEASE);
    kit_await_no_bodies();
    kit.conf.lease_timeout = 5 * KIT_SECOND;
    kit_next_works(c, RDMA_HDR_READ, 2, 1);
}
END_TEST

START_TEST(lease_expires_and_the_client_is_mute)
{
    kit_client *c;
    kit_work w;

    short_deadlines();
    kit_go();
    c = kit_client_new("192.0.2.1");
    kit_client_mute(c, 1);
    w = kit_request(c, _i ? RDMA_HDR_READ : RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    ck_assert_ptr_null(w.step);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_LEASE);
    kit_await_closed(c, 0);
    kit_await_slots(0);
    if (_i) {
        kit_await_used(0);
    }
    kit_client_mute(c, 0);
    kit_next_works(c, w.kind, 2, 2);
}
END_TEST

/* CONSUMED(fin) was on its way when the lease was revoked. */
START_TEST(last_word_crosses_the_revocation)
{
    kit_client *c;
    kit_work w;

    kit.conf.lease_timeout = 100 * KIT_MS;
    kit_go();
    c = kit_client_new("192.0.2.1");
    kit_client_mute(c, 1);
    w = kit_request(c, RDMA_HDR_READ, 1, 1000);
    kit_serve(&w);
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
    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_READ, 1, 6 * step);
    kit_serve(&w);
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
    kit_work w;
    uint64_t bytes = 0;
    rdma_conn_time start = rdma_conn_now();

    kit.conf.lease_timeout = 300 * KIT_MS;
    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_READ, 1, 200000);
    kit_serve(&w);
    while (!kit_heard_of(c, 1).aborted) {
        ck_assert_int_lt(rdma_conn_now() - start, 10 * KIT_SECOND);
        kit_say(kit_client_conn(c, 0), RDMA_HDR_CONSUMED, 1, ++bytes, 0);
        usleep(20 * 1000);
    }
    ck_assert_uint_eq(kit_heard_of(c, 1).reason, RDMA_HDR_ABORT_LEASE);
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
    kit_go();
    c = kit_client_new("192.0.2.1");
    kit_client_mute(c, 1);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 9 * BLOCK);
    ck_assert_int_eq(kit_begin(&w), 0);
    ck_assert_int_eq(kit_open(&w), 0);
    ck_assert_int_eq(kit_fill(&w, BLOCK), 0);
    start = rdma_conn_now();
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    kit_await_closed(c, 0);
    ck_assert_int_lt(rdma_conn_now() - start, 5 * KIT_SECOND);
    ck_assert_int_eq(kit_heard_of(c, 1).aborted, 1);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsClosedSilent), 1);
}
END_TEST

/* ---- the client gives up ----------------------------------------------- */

START_TEST(client_aborts_what_is_reserved)
{
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, _i ? RDMA_HDR_READ : RDMA_HDR_WRITE, 1, 2 * BLOCK);
    ck_assert_int_eq(kit_begin(&w), 0);
    ck_assert_int_eq(kit_open(&w), 0);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_ANSWER);
    ck_assert_int_eq(kit_fill(&w, w.total), -1);
    ck_assert_uint_eq(w.conn, 1); /* it has been spoken of */
    kit_next_works(c, w.kind, 2, 1);
}
END_TEST

START_TEST(client_aborts_what_is_active)
{
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 9 * BLOCK);
    ck_assert_int_eq(kit_begin(&w), 0);
    ck_assert_int_eq(kit_open(&w), 0);
    ck_assert_int_eq(kit_fill(&w, 3 * BLOCK), 0);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_ANSWER);
    ck_assert_int_eq(kit_fill(&w, w.total - w.filled), -1);
    ck_assert_uint_eq(w.conn, 1);
    kit_await_all_blocks();
    kit_next_works(c, RDMA_HDR_WRITE, 2, 1);
}
END_TEST

START_TEST(client_aborts_what_is_said)
{
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    kit_client_mute(c, 1);
    w = kit_request(c, _i ? RDMA_HDR_READ : RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    kit_await_no_bodies();
    kit_client_mute(c, 0);
    kit_next_works(c, w.kind, 2, 1);
}
END_TEST

/* One of many is given up; the others go on. */
START_TEST(client_aborts_one_of_eight)
{
    kit_client *c;
    kit_work w[8];
    unsigned i;

    kit.conf.memory = 24 * 1024 * 1024;
    kit_go();
    c = kit_client_new("192.0.2.1");
    for (i = 0; i < 8; i++) {
        w[i] = kit_request(c, RDMA_HDR_WRITE, i + 1, 5 * BLOCK);
        w[i].at = i * 6 * BLOCK;
        ck_assert_int_eq(kit_begin(&w[i]), 0);
        ck_assert_int_eq(kit_open(&w[i]), 0);
        ck_assert_int_eq(kit_fill(&w[i], 2 * BLOCK), 0);
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
    kit_await_no_bodies();
    kit_await_all_blocks();
}
END_TEST

/* ---- the server gives up ----------------------------------------------- */

START_TEST(worker_abandons_what_is_reserved)
{
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, _i ? RDMA_HDR_READ : RDMA_HDR_WRITE, 1, 2 * BLOCK);
    ck_assert_int_eq(kit_begin(&w), 0);
    ck_assert_int_eq(kit_open(&w), 0);
    ck_assert_int_eq(kit_fill(&w, 10), 0);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    ck_assert_uint_eq(w.conn, 0);
    kit_await_no_bodies();
    kit_next_works(c, w.kind, 2, 1);
    ck_assert_uint_eq(c->nheard, _i ? 0 : 1); /* nothing about id 1 */
}
END_TEST

/* Nobody waits for its WRITEs any more; their blocks come back all the same. */
START_TEST(worker_abandons_what_is_active)
{
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 9 * BLOCK);
    ck_assert_int_eq(kit_begin(&w), 0);
    ck_assert_int_eq(kit_open(&w), 0);
    ck_assert_int_eq(kit_fill(&w, 3 * BLOCK), 0);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    ck_assert_uint_eq(w.conn, 1);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_CONTENT);
    kit_await_no_bodies();
    kit_await_all_blocks();
    kit_next_works(c, RDMA_HDR_WRITE, 2, 1);
}
END_TEST

START_TEST(worker_finishes_too_early)
{
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, _i ? RDMA_HDR_READ : RDMA_HDR_WRITE, 1, 2 * BLOCK);
    ck_assert_int_eq(kit_begin(&w), 0);
    ck_assert_int_eq(kit_open(&w), 0);
    ck_assert_int_eq(kit_fill(&w, 2 * BLOCK - 1), 0);
    ck_assert_int_eq(kit_finish(&w), -1); /* a short file */
    ck_assert_uint_eq(w.conn, _i ? 0 : 1);
    kit_await_no_bodies();
    kit_next_works(c, w.kind, 2, 1);
}
END_TEST

/* ---- the connection is lost -------------------------------------------- */

enum { AFTER_BEGIN, AFTER_OPEN, AFTER_SOME, AFTER_ALL, AFTER_FINISH, STEPS };

static void lose(kit_client *c, int politely)
{
    kit_conn *k = kit_client_conn(c, 0);

    if (politely) {
        kit_disconnect(k);
    }
    else {
        fake_kill(rdma_conn_id(k->conn));
    }
}

START_TEST(connection_lost)
{
    int step = _i % STEPS;
    rdma_hdr_kind kind = _i / STEPS % 2 ? RDMA_HDR_READ : RDMA_HDR_WRITE;
    int politely = _i / STEPS / 2;
    kit_client *c, *other;
    kit_work w, o;
    int rc;

    kit_go();
    c = kit_client_new("192.0.2.1");
    other = kit_client_new("192.0.2.2");
    o = kit_request(other, kind, 1, 3 * BLOCK);
    ck_assert_int_eq(kit_begin(&o), 0);
    ck_assert_int_eq(kit_open(&o), 0);
    ck_assert_int_eq(kit_fill(&o, BLOCK), 0);
    kit_client_mute(c, 1);
    w = kit_request(c, kind, 1, 3 * BLOCK);
    rc = kit_begin(&w);
    ck_assert_int_eq(rc, 0);
    if (step == AFTER_BEGIN) {
        lose(c, politely);
    }
    rc = kit_open(&w);
    if (step == AFTER_OPEN) {
        lose(c, politely);
    }
    rc = rc || kit_fill(&w, 2 * BLOCK);
    if (step == AFTER_SOME) {
        lose(c, politely);
    }
    rc = rc || kit_fill(&w, BLOCK);
    if (step == AFTER_ALL) {
        lose(c, politely);
    }
    rc = rc || kit_finish(&w);
    if (step == AFTER_FINISH) {
        ck_assert_int_eq(rc, 0);
        lose(c, politely);
    }
    ck_assert(rc == 0 || w.step);
    if (step < AFTER_SOME) { /* it may have got as far as a WRITE */
        ck_assert(w.conn == 0 || kind == RDMA_HDR_WRITE);
    }
    kit_await_slots(1);
    ck_assert_int_eq(kit_fill(&o, 2 * BLOCK), 0);
    ck_assert_int_eq(kit_finish(&o), 0);
    kit_take(&o);
    kit_await_no_bodies();
    if (kind == RDMA_HDR_WRITE) {
        kit_await_all_blocks();
    }
    kit_client_mute(c, 0);
    kit_next_works(c, kind, 2, 2);
}
END_TEST

/* Everything that was made on it goes, also what no connection uses, or the
 * kernel would wait for us; afterwards all works again. */
START_TEST(device_is_removed)
{
    rdma_hdr_kind kind = _i & 1 ? RDMA_HDR_READ : RDMA_HDR_WRITE;
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, kind, 1, 5000);
    kit_serve(&w);
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

START_TEST(connection_lost_while_a_worker_waits)
{
    kit_client *c;
    kit_work w;
    pthread_t thread;
    rdma_conn_time start = rdma_conn_now();

    kit.conf.timeout = 60 * KIT_SECOND;
    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_take(&w);
    fake_freeze(rdma_conn_id(kit_client_conn(c, 0)->conn), 1);
    w = kit_request(c, RDMA_HDR_WRITE, 2, 30 * BLOCK);
    pthread_create(&thread, NULL, kit_serve_thread, &w);
    kit_await_stuck(c, 0, 4);
    lose(c, _i);
    pthread_join(thread, NULL);
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

    short_deadlines();
    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_take(&w);
    kit_await_no_bodies(); /* or its lease would end the connection */
    fake_freeze(rdma_conn_id(kit_client_conn(c, 0)->conn), 1);
    w = kit_request(c, RDMA_HDR_WRITE, 2, _i ? 30 * BLOCK : 1000);
    kit_serve(&w);
    if (_i) { /* a small one may be on its way, for all we know */
        ck_assert_str_eq(w.step, "space");
    }
    if (w.step) {
        ck_assert_uint_eq(w.conn, 1);
    }
    kit_await_slots(0);
    kit_await_all_blocks();
    kit_next_works(c, RDMA_HDR_WRITE, 3, 2);
}
END_TEST

START_TEST(client_stops_with_a_lease)
{
    kit_client *c;
    kit_work w;

    short_deadlines();
    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_READ, 1, 1000);
    kit_serve(&w);
    fake_freeze(rdma_conn_id(kit_client_conn(c, 0)->conn), 1);
    kit_await_slots(0);
    kit_await_used(0);
}
END_TEST

/* What was received before the loss counts, even where the device takes no
 * receives any more. */
START_TEST(fin_before_the_loss_counts)
{
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    fake_refuse_dead_posts(1);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_take(&w);
    fake_settle();
    kit_client_pause(c, 1);
    w = kit_request(c, RDMA_HDR_WRITE, 2, 1000);
    kit_serve(&w);
    fake_settle(); /* it has landed */
    fake_kill(rdma_conn_id(c->conns[0].conn));
    kit_client_pause(c, 0);
    kit_take(&w);
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
    t = kit_group(s, "giving up");
    tcase_add_loop_test(t, client_aborts_what_is_reserved, 0, 2);
    tcase_add_test(t, client_aborts_what_is_active);
    tcase_add_loop_test(t, client_aborts_what_is_said, 0, 2);
    tcase_add_test(t, client_aborts_one_of_eight);
    tcase_add_loop_test(t, worker_abandons_what_is_reserved, 0, 2);
    tcase_add_test(t, worker_abandons_what_is_active);
    tcase_add_loop_test(t, worker_finishes_too_early, 0, 2);
    t = kit_group(s, "loss");
    tcase_add_loop_test(t, connection_lost, 0, STEPS * 4);
    tcase_add_loop_test(t, device_is_removed, 0, 4);
    tcase_add_loop_test(t, connection_lost_while_a_worker_waits, 0, 2);
    tcase_add_loop_test(t, client_has_stopped, 0, 2);
    tcase_add_test(t, client_stops_with_a_lease);
    tcase_add_test(t, fin_before_the_loss_counts);
}

int main(void)
{
    return kit_main("engine, faults", add);
}
