/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * A test for each row of "The server's states for one id" (PROTOCOL.md, 8.7),
 * and streams whose client fails in each way at each step.
 */
#include "kit.h"

#include <sched.h>

#include "../../rdma_body_private.h"

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)
#define PART  ((uint64_t)512 * 1024) /* of a stream of the read kind */

static kit_work request(kit_client *c, int kind, uint32_t id, uint64_t total)
{
    kit_work w = kit_request(c, kit_kinds[kind], id, total);

    w.at = 4095; /* windows need not be aligned */
    w.stream = 1;
    w.window = RDMA_BODY_RING;
    return w;
}

static body_state state_of(const kit_work *w)
{
    body_state s;

    rdma_conn_lock(w->set->conn);
    s = w->body->state;
    rdma_conn_unlock(w->set->conn);
    return s;
}

/* All that the body needed is there again, and the connection, unless it is
 * another one by now, is as good as before. */
static void next_stream_works(kit_client *c, int kind, uint32_t id,
                              unsigned nconns)
{
    kit_work w = request(c, kind, id, 3 * PART);

    kit_be_patient();
    if (!kind) {
        kit_await_all_blocks();
    }
    kit_pass_stream(&w, 0);
    kit_await_no_bodies();
    ck_assert_uint_eq(c->nconns, nconns);
}

/* Until the client has been told of so many bytes. */
static void await_announced(kit_client *c, uint32_t id, uint64_t bytes)
{
    const kit_heard *h;

    pthread_mutex_lock(&c->lock);
    while (h = kit_entry(c, id),
           h->written < bytes
               && (h->noffers == 0
                   || h->offers[(h->noffers - 1) % KIT_OFFERS].bytes < bytes)) {
        kit_sleep_on(c, "WRITTEN or OFFER");
    }
    pthread_mutex_unlock(&c->lock);
}

/* ---- clients ----------------------------------------------------------- */

START_TEST(lazy_client_of_a_ring)
{
    static const uint64_t windows[] = {65536, 65537, 99991, 262147};
    const uint64_t window = windows[_i];
    kit_client *c = kit_go_with_client();
    uint32_t i;

    for (i = 1; i <= 3; i++) {
        kit_work w = request(c, 0, i, 4 * window + i);

        w.window = window;
        w.lazy = 1;
        kit_pass_stream(&w, i == 2 ? 5000 : 0);
    }
    kit_await_all_back(RDMA_HDR_WRITE);
}
END_TEST

/* More time in all than a deadline, but progress before each of them. */
START_TEST(slow_client_gets_all)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time start = rdma_conn_now();

    kit_deadlines(KIT_SECOND);
    c = kit_go_with_client();
    w = request(c, _i, 1, _i ? 3 * PART : 14 * RDMA_BODY_RING);
    w.nap = 100 * KIT_MS;
    kit_pass_stream(&w, RDMA_BODY_RING);
    ck_assert_int_gt(rdma_conn_now() - start, kit.conf.timeout);
    kit_await_no_bodies();
}
END_TEST

/* One block is all that there is; and the ring is larger than a block. */
START_TEST(ring_with_one_block)
{
    kit_client *c;
    kit_work w;

    kit.conf.memory = 2 * BLOCK;
    c = kit_go_with_client();
    w = request(c, 0, 1, 20 * BLOCK);
    w.window = 5 * BLOCK + 3;
    kit_pass_stream(&w, 0);
    kit_await_all_blocks();
}
END_TEST

/* Parts get smaller before a stream is declined. */
START_TEST(chain_with_little_memory)
{
    kit_client *c;
    kit_work w;

    kit.conf.memory = 2 * 1024 * 1024;
    c = kit_go_with_client();
    w = request(c, 1, 1, 3 * 1024 * 1024 + 5);
    kit_pass_stream(&w, 0);
    ck_assert_uint_lt(w.head.len, PART);
    kit_await_no_bodies();
}
END_TEST

static void *pass_lazily(void *work)
{
    kit_pass_stream(work, 10007);
    return NULL;
}

/* Many at a time on one connection, which takes turns. */
START_TEST(eight_streams_one_connection)
{
    kit_client *c;
    kit_work w[8];
    pthread_t threads[8];
    uint32_t i;

    kit.conf.memory = 64 * 1024 * 1024;
    kit_deadlines(KIT_PATIENT);
    c = kit_go_with_client();
    for (i = 0; i < 8; i++) {
        w[i] = request(c, 0, i + 1, PART + i);
        w[i].at = i * 1024 * 1024;
        w[i].unknown = i & 1;
        w[i].lazy = i > 4;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, pass_lazily, &w[i]),
                         0);
    }
    for (i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_uint_eq(c->nconns, 1);
    kit_await_all_back(RDMA_HDR_WRITE);
}
END_TEST

/* What the client does when the stream has come to a step. */
enum { MUTE, ABORTS, LEAVES, IS_KILLED, FREEZES, DEEDS };
enum { AT_HEAD, AT_FULL, AT_FIN, STEPS };

static void *fill_and_finish(void *work)
{
    kit_work *w = work;

    if (kit_fill(w, w->total - w->filled) == 0) {
        kit_finish(w);
    }
    return NULL;
}

static void misbehave(kit_client *c, int deed)
{
    switch (deed) {
    case MUTE:
        kit_client_mute(c, 1);
        break;
    case ABORTS:
        kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
        break;
    case FREEZES:
        kit_freeze(c, 1);
        break;
    default:
        kit_lose(c, deed == LEAVES);
    }
}

/* At each step, of both kinds. The worker ends in time, memory comes back, and
 * the next stream works. */
START_TEST(client_fails)
{
    int deed = _i % DEEDS;
    int step = _i / DEEDS % STEPS;
    int kind = _i / DEEDS / STEPS;
    uint64_t end = kind ? 2 * PART : RDMA_BODY_RING; /* with nobody taking */
    kit_client *c;
    kit_work w;
    rdma_conn_time start = rdma_conn_now();

    if (deed == MUTE || deed == FREEZES) {
        kit_deadlines(300 * KIT_MS);
    }
    c = kit_go_with_client();
    w = request(c, kind, 1, step == AT_FIN ? end - 1 : 10 * PART);
    w.unknown = 1;
    if (step == AT_FIN) { /* so that it is open still */
        kit_client_mute(c, 1);
    }
    kit_start(&w, 0);
    if (step == AT_HEAD) {
        if (kind) {
            ck_assert_int_eq(kit_fill(&w, 10), 0);
            ck_assert_int_eq(kit_flush(&w), 0);
        }
        ck_assert_int_eq(w.headed, 1);
        misbehave(c, deed);
        fill_and_finish(&w);
    }
    else if (step == AT_FULL) {
        kit_run(&w, fill_and_finish);
        await_announced(c, 1, end); /* it can but wait now, or soon */
        misbehave(c, deed);
        kit_join(&w);
    }
    else {
        fill_and_finish(&w);
        ck_assert_ptr_null(w.step);
        kit_await_fin(c, 1);
        misbehave(c, deed);
    }
    if (step != AT_FIN) {
        ck_assert_ptr_nonnull(w.step);
        ck_assert_uint_eq(w.conn, 1);
        ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsCut), 1);
    }
    if (deed == ABORTS) {
        kit_await_no_bodies();
    }
    else {
        kit_await_slots(0);
    }
    if (deed == MUTE) { /* it was told why, before */
        ck_assert_uint_eq(kit_await_abort(c, 1).reason,
                          step == AT_FIN ? RDMA_HDR_ABORT_LEASE
                                         : RDMA_HDR_ABORT_UNSPECIFIED);
    }
    ck_assert_int_lt(rdma_conn_now() - start, 10 * KIT_SECOND);
    kit_client_mute(c, 0);
    next_stream_works(c, kind, 2, deed == ABORTS ? 1 : 2);
}
END_TEST

/* One whose client does not take it holds up no other id of the connection. */
START_TEST(stuck_stream_harms_nobody)
{
    kit_client *c;
    kit_work w, o;

    kit.conf.timeout = KIT_PATIENT;
    c = kit_go_with_client();
    w = request(c, _i, 1, 10 * PART);
    kit_run(&w, kit_serve_thread);
    kit_take_stream(&w, 0, 1);
    kit_await_sleeper();
    o = request(c, _i, 2, 100000);
    o.stream = 0;
    o.window = 100000;
    o.at = 1024 * 1024;
    kit_serve(&o);
    kit_take(&o);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsCut), 0);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    kit_join(&w);
    ck_assert_ptr_nonnull(w.step);
    kit_await_no_bodies();
}
END_TEST

/* ---- one row of PROTOCOL.md, 8.7, after the other ---------------------- */

/* IDLE: connection and resources. RESERVED: trouble. Nobody hears of either. */
START_TEST(idle_reserved_trouble)
{
    kit_client *c = kit_go_with_client();
    kit_work w = request(c, 1, 1, 3 * PART);

    kit_start(&w, 0);
    ck_assert_int_eq(state_of(&w), RESERVED);
    ck_assert_int_eq(kit_fill(&w, 5), 0);
    ck_assert_int_eq(state_of(&w), RESERVED);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    ck_assert_uint_eq(w.conn, 0); /* D1 */
    next_stream_works(c, 1, 2, 1);
    ck_assert_int_eq(kit_heard_of(c, 1).aborted, 0);
}
END_TEST

/* IDLE: anything missing. */
START_TEST(idle_missing)
{
    static const rdma_hdr_declined why[] = {RDMA_HDR_WINDOW, RDMA_HDR_MEMORY,
                                            RDMA_HDR_MEMORY, RDMA_HDR_CONNECT};
    kit_client *c = kit_go_with_client();
    kit_work w = request(c, _i == 2, 1, 10 * PART);

    ck_assert_int_eq(kit_begin(&w), 0);
    switch (_i) {
    case 0:
        w.window = RDMA_BODY_RING - 1;
        break;
    case 1:
        w.set->conf.pool = NULL; /* the device's could not be registered */
        break;
    case 2:
        fake_memlock(fake_registered() + 1);
        break;
    default:
        kit_disconnect(kit_client_conn(c, 0));
        kit_await_closed(c, 0);
        fake_settle();
        while (rdma_conn_state_get(w.set->conn) == RDMA_CONN_OPEN) {
            sched_yield();
        }
    }
    ck_assert_int_eq(kit_open(&w), -1);
    ck_assert_int_eq(w.why, why[_i]);
    ck_assert_uint_eq(w.conn, 0);
    kit_await_no_bodies();
}
END_TEST

/* RESERVED: known and fits. */
START_TEST(reserved_whole)
{
    kit_client *c = kit_go_with_client();
    kit_work w = request(c, _i, 1, BLOCK);

    w.stream = 0;
    w.window = BLOCK;
    kit_start(&w, BLOCK);
    ck_assert_int_eq(state_of(&w), _i ? RESERVED : ACTIVE);
    ck_assert_int_eq(w.headed, 0);
    ck_assert_int_eq(kit_finish(&w), 0); /* W1 or R1 */
    kit_take(&w);
    kit_await_no_bodies();
}
END_TEST

/* RESERVED: else. ACTIVE, head sent: CONSUMED; the source at its end. SAID: the
 * client's last word. */
START_TEST(reserved_stream_said_closed)
{
    kit_client *c = kit_go_with_client();
    kit_work w = request(c, _i, 1, 3 * PART + 100);
    unsigned used;

    kit_start(&w, 0);
    if (_i) { /* its first part goes into the head */
        ck_assert_int_eq(state_of(&w), RESERVED);
        ck_assert_int_eq(kit_fill(&w, PART), 0);
    }
    ck_assert_int_eq(w.headed, 1);
    ck_assert_int_eq(state_of(&w), ACTIVE);
    used = kit_used();
    kit_run(&w, kit_go_on_thread); /* by CONSUMED */
    ck_assert_uint_eq(kit_take_stream(&w, 0, UINT64_MAX), w.total);
    kit_join(&w);
    ck_assert_ptr_null(w.step);
    kit_await_no_bodies();
    ck_assert_uint_eq(kit_used(), used); /* and nothing was added */
    next_stream_works(c, _i, 2, 1);
}
END_TEST

/* ACTIVE, head not sent: trouble. Only kind write posts before its head. */
START_TEST(active_headless_trouble)
{
    kit_client *c = kit_go_with_client();
    kit_work w = request(c, 0, 1, 2 * BLOCK);

    w.stream = 0;
    w.window = 2 * BLOCK;
    kit_start(&w, BLOCK);
    ck_assert_int_eq(state_of(&w), ACTIVE);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    ck_assert_uint_eq(w.conn, 1); /* D3 */
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_CONTENT);
    kit_await_no_bodies();
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsCut), 0);
    next_stream_works(c, 0, 2, 1);
}
END_TEST

/* ACTIVE, head sent: trouble. The client has to answer for the id to close. */
START_TEST(active_trouble)
{
    kit_client *c = kit_go_with_client();
    kit_work w;
    unsigned live;

    kit_client_mute(c, 1);
    w = request(c, _i, 1, 10 * PART);
    kit_start(&w, 20000);
    ck_assert_int_eq(kit_flush(&w), 0);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    ck_assert_uint_eq(w.conn, 1);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsCut), 1);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_CONTENT);
    ck_assert(!kit_heard_of(c, 1).fin); /* never a false success */
    rdma_conn_lock(w.set->conn);
    live = rdma_body_set_live(w.set);
    rdma_conn_unlock(w.set->conn);
    ck_assert_uint_eq(live, 1);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    kit_await_no_bodies();
    kit_client_mute(c, 0);
    next_stream_works(c, _i, 2, 1);
}
END_TEST

/* ACTIVE: ABORT. It is answered by who receives, not by the worker. */
START_TEST(active_abort)
{
    kit_client *c = kit_go_with_client();
    kit_work w = request(c, _i & 1, 1, 10 * PART);

    kit_start(&w, 20000);
    ck_assert_int_eq(kit_flush(&w), 0);
    kit_say(kit_client_conn(c, 0), RDMA_HDR_ABORT, 1, 0, 0);
    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_ANSWER);
    kit_await_no_bodies();
    ck_assert_int_eq(state_of(&w), CLOSED);
    if (_i & 2) { /* the source was about to end */
        ck_assert_int_eq(kit_finish(&w), -1);
    }
    else {
        ck_assert_int_eq(kit_flush(&w), -1);
    }
    ck_assert_uint_eq(w.conn, 1);
    ck_assert_int_eq(kit_await_abort(c, 1).aborted, 1); /* once */
    next_stream_works(c, _i & 1, 2, 1);
}
END_TEST

/* SAID: all has been said of the stream, and its client keeps silent. */
static kit_client *said_to_a_mute(int kind)
{
    kit_client *c;
    kit_work w;

    kit_deadlines(300 * KIT_MS);
    c = kit_go_with_client();
    kit_client_mute(c, 1);
    w = request(c, kind, 1, 60000);
    w.unknown = 1;
    w.pause = 30000;
    ck_assert_int_eq(kit_serve(&w), 0);
    kit_await_fin(c, 1);
    return c;
}

/* The lease is over; no answer to that. */
START_TEST(said_lease_no_answer)
{
    kit_client *c = said_to_a_mute(_i);

    ck_assert_uint_eq(kit_await_abort(c, 1).reason, RDMA_HDR_ABORT_LEASE);
    kit_await_closed(c, 0);
    kit_await_slots(0);
    if (_i) {
        kit_await_used(0);
    }
    kit_client_mute(c, 0);
    next_stream_works(c, _i, 2, 2);
}
END_TEST

/* ... of which crumbs before each deadline make no more. */
START_TEST(said_lease_crumbs)
{
    kit_client *c = said_to_a_mute(_i);

    ck_assert_uint_eq(kit_say_crumbs(c, 1).reason, RDMA_HDR_ABORT_LEASE);
    kit_await_slots(0);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "clients");

    tcase_add_loop_test(t, lazy_client_of_a_ring, 0, 4);
    tcase_add_loop_test(t, slow_client_gets_all, 0, 2);
    tcase_add_test(t, ring_with_one_block);
    tcase_add_test(t, chain_with_little_memory);
    tcase_add_test(t, eight_streams_one_connection);
    tcase_add_loop_test(t, client_fails, 0, DEEDS * STEPS * 2);
    tcase_add_loop_test(t, stuck_stream_harms_nobody, 0, 2);
    t = kit_group(s, "rows of 8.7");
    tcase_add_test(t, idle_reserved_trouble);
    tcase_add_loop_test(t, idle_missing, 0, 4);
    tcase_add_loop_test(t, reserved_whole, 0, 2);
    tcase_add_loop_test(t, reserved_stream_said_closed, 0, 2);
    tcase_add_test(t, active_headless_trouble);
    tcase_add_loop_test(t, active_trouble, 0, 2);
    tcase_add_loop_test(t, active_abort, 0, 4);
    tcase_add_loop_test(t, said_lease_no_answer, 0, 2);
    tcase_add_loop_test(t, said_lease_crumbs, 0, 2);
}

int main(void)
{
    return common_main("engine, states", add);
}
