/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine at work, over a device that is not there: bodies of every size,
 * many at a time, and what they need.
 */
#include "kit.h"

#include <string.h>

#define BLOCK   ((uint64_t)RDMA_MEM_BLOCK)
#define WORKERS 8

/* ---- bodies ------------------------------------------------------------ */

static const uint64_t sizes[] = {
    1,         7,         4096,          BLOCK - 1, BLOCK,
    BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 1, 4 * BLOCK, 11 * BLOCK + 12345};
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))

START_TEST(whole_body_by_write)
{
    kit_client *c = kit_go_with_client();
    unsigned i;

    for (i = 0; i < SIZES; i++) {
        kit_work w = kit_request(c, RDMA_HDR_WRITE, i + 1, sizes[i]);

        w.at = 4095; /* windows need not be aligned */
        w.window = sizes[i];
        memset(c->window.base, 0, KIT_WINDOW); /* none of it is offered now */
        kit_serve(&w);
        kit_take(&w);
        ck_assert_int_eq(c->window.base[w.at - 1], 0);
        ck_assert_int_eq(c->window.base[w.at + w.total], 0);
    }
    kit_await_all_back(RDMA_HDR_WRITE);
}
END_TEST

START_TEST(whole_body_by_read)
{
    kit_client *c;
    unsigned i;

    kit.conf.memory = 32 * 1024 * 1024;
    c = kit_go_with_client();
    for (i = 0; i < SIZES; i++) {
        kit_pass(c, RDMA_HDR_READ, i + 1, sizes[i]);
        kit_await_no_bodies(); /* the arena may have to grow */
    }
}
END_TEST

START_TEST(body_filled_in_crumbs)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, kit_kinds[_i], 1, 2 * BLOCK + 77);
    int i;

    kit_start(&w, 0);
    for (i = 0; i < 100; i++) {
        ck_assert_int_eq(kit_fill(&w, w.total / 100), 0);
    }
    kit_complete(&w);
}
END_TEST

/* The bytes of the page behind the body could be read: they are zero. */
START_TEST(part_shows_nothing_of_the_one_before)
{
    kit_client *c = kit_go_with_client();
    kit_work w;
    size_t i;

    kit_pass(c, RDMA_HDR_READ, 1, 8192);
    kit_await_no_bodies();
    w = kit_lease(c, RDMA_HDR_READ, 2, 10);
    w.head.len = 4096;
    memset(c->sink.base, 1, 4096);
    ck_assert_int_eq(kit_read(kit_client_conn(c, 0), &w.head, 0), 0);
    ck_assert(kit_body_is_right(&w));
    for (i = 10; i < 4096; i++) {
        ck_assert_int_eq(c->sink.base[i], 0);
    }
    kit_say(kit_client_conn(c, 0), RDMA_HDR_CONSUMED, 2, 10, RDMA_HDR_FIN);
}
END_TEST

/* A handler has filled it, fails, and has committed nothing, or a part of it. */
START_TEST(part_shows_nothing_that_was_not_offered)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, RDMA_HDR_READ, 1, 8192);
    size_t room;
    size_t i;
    char *at;

    kit_start(&w, _i ? 1000 : 0);
    at = rdma_body_space(w.body, &room);
    ck_assert_ptr_nonnull(at);
    memset(at, 1, room);
    kit_abandon(&w, RDMA_HDR_ABORT_CONTENT);
    w = kit_lease(c, RDMA_HDR_READ, 2, 10);
    w.head.len = 8192;
    memset(c->sink.base, 1, 8192);
    ck_assert_int_eq(kit_read(kit_client_conn(c, 0), &w.head, 0), 0);
    for (i = 10; i < 8192; i++) {
        ck_assert_int_eq(c->sink.base[i], 0);
    }
    kit_say(kit_client_conn(c, 0), RDMA_HDR_CONSUMED, 2, 10, RDMA_HDR_FIN);
}
END_TEST

START_TEST(hundred_requests_one_connection)
{
    kit_client *c;
    uint32_t id;
    rdma_conn_time start = rdma_conn_now();

    kit_deadlines(10 * KIT_SECOND);
    kit.conf.memory = 64 * 1024 * 1024; /* for all, if it hears of none */
    c = kit_go_with_client();
    for (id = 1; id <= 100; id++) {
        kit_pass(c, kit_kinds[_i], id, id * 997);
    }
    ck_assert_uint_eq(c->nconns, 1);
    kit_await_no_bodies();
    /* Nobody has slept over a completion until its deadline. */
    ck_assert_int_lt(rdma_conn_now() - start, 10 * KIT_SECOND);
}
END_TEST

START_TEST(eight_workers_one_connection)
{
    kit_client *c;
    kit_gang g;
    uint32_t round;

    kit.conf.memory = 64 * 1024 * 1024; /* all at once, none as a stream */
    c = kit_go_with_client();
    for (round = 0; round < 5; round++) {
        kit_gang_send(&g, c, kit_kinds[_i], WORKERS, 1 + round * WORKERS,
                      3 * BLOCK + 100);
        kit_gang_take(&g);
    }
    ck_assert_uint_eq(c->nconns, 1);
    kit_await_no_bodies();
}
END_TEST

/* More WRITEs than the connection takes at a time: workers wait for room, and
 * each is posted once. */
START_TEST(more_writes_than_fit)
{
    kit_client *c;
    kit_gang g;

    kit.conf.memory = 192 * 1024 * 1024;
    kit.conf.timeout = 20 * KIT_SECOND;
    c = kit_go_with_client();
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    kit_freeze(c, 1);
    kit_gang_send(&g, c, RDMA_HDR_WRITE, 24, 2, 4 * BLOCK);
    kit_await_stuck(c, 0, RDMA_CONN_DATA);
    kit_freeze(c, 0);
    kit_gang_take(&g);
    kit_await_all_back(RDMA_HDR_WRITE);
}
END_TEST

static void *fill_thread(void *work)
{
    kit_work *w = work;

    kit_fill(w, w->total);
    return NULL;
}

/* The queue is full, and empties between a worker's look and its sleep: what
 * waited is posted then, and once only. */
START_TEST(room_comes_just_before_the_sleep)
{
    kit_client *c;
    kit_work w[(RDMA_CONN_DATA + FAKE_WIRE) / 4 + 2];
    kit_work *last;
    struct rdma_cm_id *id = NULL;
    unsigned room; /* WRITEs that the connection still takes */
    uint32_t n = 0;
    uint32_t i;

    kit.conf.memory = 192 * 1024 * 1024;
    c = kit_go_with_client();
    while ((room = RDMA_CONN_DATA - (id ? fake_stuck(id) : 0)) > 0) {
        w[n] = kit_request(c, RDMA_HDR_WRITE, n + 1, 5 * BLOCK);
        w[n].at = n * w[n].total;
        ck_assert_int_eq(kit_begin(&w[n]), 0);
        if (!id) {
            id = rdma_conn_id(kit_client_conn(c, 0)->conn);
            fake_freeze(id, 1);
        }
        ck_assert_int_eq(kit_open(&w[n]), 0);
        ck_assert_int_eq(kit_fill(&w[n++], (room < 4 ? room : 4) * BLOCK), 0);
        fake_settle();
    }
    last = &w[n];
    *last = kit_request(c, RDMA_HDR_WRITE, n + 1, BLOCK);
    last->at = n++ * 5 * BLOCK;
    kit_start(last, 0);
    kit_run(last, fill_thread);
    kit_await_sleeper();
    fake_thaw_at_arm(id);
    kit_rouse_sleeper();
    kit_join(last);
    for (i = 0; i < n; i++) {
        ck_assert_ptr_null(w[i].step);
        kit_complete(&w[i]);
    }
    kit_await_all_back(RDMA_HDR_WRITE);
}
END_TEST

/* A message lands when another one has been served and before its queue is
 * armed again: it must not lie there until the next one. */
START_TEST(message_comes_just_before_the_sleep)
{
    kit_client *c = kit_go_with_client();
    uint32_t id;
    rdma_conn_time start = rdma_conn_now();

    for (id = 1; id <= 30; id++) {
        kit_conn *k;

        kit_lease(c, RDMA_HDR_READ, id, 100);
        k = kit_client_conn(c, 0);
        kit_say(k, RDMA_HDR_CONSUMED, id, 50, 0);
        kit_say(k, RDMA_HDR_CONSUMED, id, 100, RDMA_HDR_FIN);
        kit_await_no_bodies();
    }
    ck_assert_int_lt(rdma_conn_now() - start, kit.conf.lease_timeout);
}
END_TEST

START_TEST(both_kinds_have_connections_of_their_own)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_lease(c, RDMA_HDR_WRITE, 1, 1000);
    kit_work r = kit_lease(c, RDMA_HDR_READ, 2, 1000);

    kit_take(&w);
    kit_take(&r);
    ck_assert_uint_ne(w.head.conn, r.head.conn);
    ck_assert_uint_eq(c->nconns, 2);
}
END_TEST

/* ---- reserving --------------------------------------------------------- */

/* And the window is too small for a stream. */
START_TEST(body_larger_than_the_window)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 1001);

    w.window = 1000;
    ck_assert_int_eq(kit_serve(&w), -1);
    ck_assert_str_eq(w.step, "open");
    ck_assert_int_eq(w.why, RDMA_HDR_WINDOW);
    kit_await_no_bodies();
}
END_TEST

START_TEST(blocks_run_out)
{
    kit_client *c;
    kit_work a, b;

    kit.conf.memory = 10 * BLOCK; /* five blocks for writing */
    c = kit_go_with_client();
    a = kit_request(c, RDMA_HDR_WRITE, 1, 8 * BLOCK);
    b = kit_request(c, RDMA_HDR_WRITE, 2, 8 * BLOCK);
    b.at = 10 * BLOCK;
    kit_start(&a, 0);
    kit_start(&b, 0); /* with one block each instead of four */
    kit_declined(c, RDMA_HDR_WRITE, 3, 1, "open", RDMA_HDR_MEMORY);
    kit_complete(&b);
    kit_abandon(&a, RDMA_HDR_ABORT_CANCELLED);
    ck_assert_uint_eq(a.conn, 0); /* nothing was posted */
    kit_pass(c, RDMA_HDR_WRITE, 4, 1);
    kit_await_all_blocks();
}
END_TEST

/* Who does not confirm what lies in his own window holds nothing of ours. */
START_TEST(slow_client_pins_no_block)
{
    kit_client *c;
    uint32_t id;

    kit.conf.memory = 8 * BLOCK;
    c = kit_go_with_client();
    kit_client_mute(c, 1);
    for (id = 1; id <= 20; id++) {
        kit_pass(c, RDMA_HDR_WRITE, id, BLOCK);
    }
    kit_await_all_blocks();
}
END_TEST

/* Two arenas of the largest size are what one connection gets. */
START_TEST(arenas_are_full)
{
    const size_t most = 1024 * 1024; /* an eighth of the memory */
    kit_client *c = kit_go_with_client();
    kit_work a[2];
    size_t before;
    uint32_t i;

    for (i = 0; i < 2; i++) {
        a[i] = kit_request(c, RDMA_HDR_READ, i + 1, most);
        ck_assert_int_eq(kit_begin(&a[i]), 0);
        before = kit_used();
        ck_assert_int_eq(kit_open(&a[i]), 0);
        ck_assert_uint_eq(kit_used(), before + most);
    }
    kit_declined(c, RDMA_HDR_READ, 3, 1, "open", RDMA_HDR_MEMORY);
    for (i = 0; i < 2; i++) {
        kit_complete(&a[i]);
    }
    kit_await_no_bodies();
    kit_pass(c, RDMA_HDR_READ, 4, most); /* there is room again */
}
END_TEST

/* RLIMIT_MEMLOCK is what Debian gives: less than what was configured. */
START_TEST(memlock_is_small)
{
    kit_client *c;

    kit.conf.memory = 64 * 1024 * 1024;
    c = kit_go_with_client();
    fake_memlock(fake_registered() + 8 * 1024 * 1024 + 65536);
    kit_pass(c, RDMA_HDR_WRITE, 1, 3 * BLOCK);
    kit_declined(c, RDMA_HDR_READ, 2, 4 * BLOCK, "open", RDMA_HDR_MEMORY);
}
END_TEST

/* What one client leaves idle, another gets. */
START_TEST(idle_arenas_are_reclaimed)
{
    kit_client *c[KIT_CLIENTS];
    uint32_t i;

    kit.conf.memory = 6 * 1024 * 1024;
    kit_go();
    for (i = 0; i < KIT_CLIENTS; i++) {
        c[i] = kit_client_new("192.0.2.1");
        kit_pass(c[i], RDMA_HDR_READ, 1, kit.conf.memory / 8);
        kit_await_no_bodies();
    }
    kit_pass(c[0], RDMA_HDR_READ, 2, kit.conf.memory / 8);
}
END_TEST

/* A client may open more ids than the queue has room for messages about: those
 * that are too many are declined, and all others can be revoked at once. */
START_TEST(many_leases_are_revoked_at_once)
{
    kit_client *c;
    kit_work w;
    uint32_t id = 0;

    kit.conf.memory = 16 * 1024 * 1024;
    kit.conf.lease_timeout = 3 * KIT_SECOND;
    c = kit_go_with_client();
    do {
        w = kit_request(c, RDMA_HDR_READ, ++id, 1);
        kit_serve(&w);
    } while (!w.step && id < 1000);
    ck_assert_uint_gt(id, 100);
    ck_assert_uint_lt(id, 1000);
    ck_assert_int_eq(w.why, RDMA_HDR_BUSY);
    kit_await_no_bodies(); /* each is aborted and answered */
    kit_next_works(c, RDMA_HDR_READ, ++id, 1);
}
END_TEST

START_TEST(memlock_is_used_up)
{
    kit_client *c = kit_go_with_client();

    fake_memlock(fake_registered() + 1);
    kit_declined(c, kit_kinds[_i], 1, 1, "wait", RDMA_HDR_MEMORY);
    fake_memlock(0); /* it was ours: the client is asked again soon */
    kit_end_pause();
    kit_pass(c, kit_kinds[_i], 2, 1);
}
END_TEST

START_TEST(id_used_twice)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 1);
    static const struct {
        uint32_t id;
        int first;
        uint32_t on; /* else */
    } uses[] = {
        {5, 1, 0},          {5, 0, 1},         {4, 1, 0},    {4, 0, 1},
        {6, 1, 0},          {1000, 1, 0},      {5, 0, 1},    {6, 0, 1},
        {7, 1, 0},          {2000, 1, 0},      {976, 0, 0},  {977, 1, 0},
        {977, 0, 1},        {5, 0, 0},         {1000, 0, 1}, {0x7fffffff, 1, 0},
        {2000, 0, 0},       {5, 0, 0},         {1, 0, 0},    {0x7fffffff, 0, 1},
        {0x7ffffffe, 1, 0}, {0x7ffffffe, 0, 1}};
    unsigned i;

    w.id = 3;
    ck_assert_int_eq(kit_begin(&w), 0);
    for (i = 0; i < sizeof(uses) / sizeof(uses[0]); i++) {
        uint32_t conn;

        ck_assert_int_eq(rdma_cache_use_id(w.slot, uses[i].id, &conn),
                         uses[i].first);
        /* Too old: forgotten, and none of them runs. */
        ck_assert_uint_eq(conn, uses[i].on);
    }
    ck_assert_int_eq(kit_open(&w), 0);
    kit_abandon(&w, RDMA_HDR_ABORT_CANCELLED);
    /* Of the other kind, too: ids are the endpoint's. */
    kit_declined(c, RDMA_HDR_READ, 0x7fffffff, 1, "use_id",
                 RDMA_HDR_NOT_DECLINED);
}
END_TEST

/* A library has repeated the request by itself: the first one still runs. */
START_TEST(id_used_twice_while_it_runs)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_lease(c, RDMA_HDR_READ, 1, 1000);
    kit_work again = kit_request(c, kit_kinds[_i], 1, 1000);

    ck_assert_int_eq(kit_serve(&again), -1);
    ck_assert_str_eq(again.step, "use_id");
    ck_assert_uint_eq(again.conn, w.head.conn);
    kit_take(&w);
    kit_await_no_bodies();
    again = kit_request(c, RDMA_HDR_READ, 1, 1000);
    ck_assert_int_eq(kit_serve(&again), -1);
    ck_assert_uint_eq(again.conn, w.head.conn); /* something was posted */
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "bodies");

    tcase_add_test(t, whole_body_by_write);
    tcase_add_test(t, whole_body_by_read);
    tcase_add_loop_test(t, body_filled_in_crumbs, 0, 2);
    tcase_add_test(t, part_shows_nothing_of_the_one_before);
    tcase_add_loop_test(t, part_shows_nothing_that_was_not_offered, 0, 2);
    tcase_add_loop_test(t, hundred_requests_one_connection, 0, 2);
    tcase_add_loop_test(t, eight_workers_one_connection, 0, 2);
    tcase_add_test(t, more_writes_than_fit);
    tcase_add_test(t, room_comes_just_before_the_sleep);
    tcase_add_test(t, message_comes_just_before_the_sleep);
    tcase_add_test(t, both_kinds_have_connections_of_their_own);
    t = kit_group(s, "reserving");
    tcase_add_test(t, body_larger_than_the_window);
    tcase_add_test(t, blocks_run_out);
    tcase_add_test(t, slow_client_pins_no_block);
    tcase_add_test(t, arenas_are_full);
    tcase_add_test(t, idle_arenas_are_reclaimed);
    tcase_add_test(t, many_leases_are_revoked_at_once);
    tcase_add_test(t, memlock_is_small);
    tcase_add_loop_test(t, memlock_is_used_up, 0, 2);
    tcase_add_test(t, id_used_twice);
    tcase_add_loop_test(t, id_used_twice_while_it_runs, 0, 2);
}

int main(void)
{
    return common_main("engine", add);
}
