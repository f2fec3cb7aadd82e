/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The engine's connections over a device that is not there: making them, keeping
 * them, stopping.
 */
#include "kit.h"

#include <apr_general.h>
#include <arpa/inet.h>
#include <unistd.h>

#include "../../rdma_cache_private.h"

#define BLOCK   ((uint64_t)RDMA_MEM_BLOCK)
#define WORKERS 8

/* ---- connecting -------------------------------------------------------- */

START_TEST(first_use_by_many_connects_once)
{
    kit_client *c = kit_go_with_client();
    kit_gang g;

    kit_client_manner(c, KIT_HOLD);
    kit_gang_send(&g, c, RDMA_HDR_WRITE, WORKERS, 1, 1000);
    kit_await_requests(c, 1);
    kit_client_manner(c, KIT_ACCEPT);
    kit_gang_take(&g);
    ck_assert_uint_eq(fake_connects(kit_client_port(c)), 1);
}
END_TEST

/* A connect that fails, and another at once: the second is not even tried. */
static void fails_and_backs_off(kit_client *c, rdma_hdr_declined why)
{
    unsigned connects;

    kit_declined(c, RDMA_HDR_WRITE, 1, 1000, "wait", why);
    kit_await_slots(0); /* a worker does not wait for the connector */
    connects = fake_connects(kit_client_port(c));
    kit_declined(c, RDMA_HDR_WRITE, 2, 1000, "acquire", why);
    ck_assert_uint_eq(fake_connects(kit_client_port(c)), connects);
}

/* ... of a client; there is a device, and the pool has been registered with it,
 * once. */
static void is_left_alone(kit_client *c)
{
    fails_and_backs_off(c, RDMA_HDR_CONNECT);
    ck_assert_uint_eq(kit_used() / BLOCK, kit.conf.memory / BLOCK / 2);
}

/* The other kind, and another client, are not punished. */
static void others_work(kit_client *c, int other_kind)
{
    kit_pass(kit_client_new("192.0.2.99"), RDMA_HDR_WRITE, 3, 1000);
    if (other_kind) {
        kit_pass(c, RDMA_HDR_READ, 4, 1000);
    }
}

/* It answers no, or with an accept that names connection 0. */
START_TEST(connect_rejected)
{
    kit_client *c = kit_go_with_client();

    kit_client_manner(c, _i ? KIT_BAD_ACCEPT : KIT_REJECT);
    is_left_alone(c);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsFailedRejected), 1);
    kit_client_manner(c, KIT_ACCEPT);
    others_work(c, 1);
}
END_TEST

START_TEST(connect_with_a_wrong_token)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);

    pthread_mutex_lock(&c->gate);
    c->token[15] ^= 1; /* what the server says ... */
    pthread_mutex_unlock(&c->gate);
    kit_client_manner(c, KIT_HOLD);
    kit_client_pause(c, 1);
    kit_run(&w, kit_serve_thread);
    kit_await_connect(c);
    c->token[15] ^= 1; /* ... is not what the client knows */
    kit_client_pause(c, 0);
    kit_join(&w);
    ck_assert_str_eq(w.step, "wait");
    ck_assert_int_eq(w.why, RDMA_HDR_CONNECT);
    ck_assert_uint_eq(c->nconns, 0);
}
END_TEST

START_TEST(connect_refused)
{
    kit_client *c = kit_go_with_client();

    c->addr.sin_port = htons(1024); /* nobody is there */
    is_left_alone(c);
    others_work(c, 0);
}
END_TEST

START_TEST(connect_without_a_device)
{
    kit_client *c = kit_go_with_client();

    fake_route_to(kit_client_port(c), FAKE_NO_DEVICE);
    fails_and_backs_off(c, RDMA_HDR_DEVICE);
}
END_TEST

static void keeps_its_deadline(kit_client *c)
{
    rdma_conn_time start = rdma_conn_now();

    is_left_alone(c);
    ck_assert_int_ge(rdma_conn_now() - start, kit.conf.connect_timeout);
    ck_assert_int_lt(rdma_conn_now() - start,
                     kit.conf.connect_timeout + 3 * KIT_SECOND);
}

START_TEST(connect_into_a_black_hole)
{
    kit_client *c;

    kit.conf.connect_timeout = 100 * KIT_MS;
    c = kit_go_with_client();
    fake_route_to(kit_client_port(c), _i ? FAKE_SILENT : FAKE_BLOCKED);
    keeps_its_deadline(c);
    fake_route_to(kit_client_port(c), FAKE_NORMAL);
    others_work(c, 1);
}
END_TEST

START_TEST(connect_that_nobody_answers)
{
    kit_client *c;

    kit.conf.connect_timeout = 100 * KIT_MS;
    c = kit_go_with_client();
    kit_client_manner(c, KIT_HOLD);
    keeps_its_deadline(c);
    kit_client_manner(c, KIT_ACCEPT); /* too late: it must be told so */
    others_work(c, 1);
}
END_TEST

/* A client address in a black hole occupies half of the connectors, however many
 * connections it asks for; what waits for it is told so in time. */
START_TEST(black_hole_takes_half_of_the_connectors)
{
    kit_work holes[6];
    kit_work w;
    unsigned i;
    unsigned connects = 0;

    kit.conf.connect_timeout = KIT_SECOND;
    kit_go();
    for (i = 0; i < 6; i++) {
        kit_fall_in(&holes[i], "192.0.2.1");
    }
    kit_await_slots(6);
    w = kit_lease(kit_client_new("192.0.2.2"), RDMA_HDR_WRITE, 1, 1000);
    for (i = 0; i < 6; i++) {
        connects += fake_connects(kit_client_port(holes[i].client));
    }
    ck_assert_uint_le(connects, 4);
    kit_take(&w);
    for (i = 0; i < 6; i++) {
        kit_join(&holes[i]);
        ck_assert_str_eq(holes[i].step, "wait");
    }
    kit_await_slots(1);
}
END_TEST

/* A client may have many more receives than we, or fewer: neither end runs out of
 * credits, or thinks that the other one lies. */
START_TEST(client_of_another_depth)
{
    static const unsigned depths[] = {8, 9, 255};
    kit_client *c;
    kit_gang g;
    uint32_t id;

    kit.conf.memory = 32 * 1024 * 1024;
    c = kit_go_with_client();
    c->depth = depths[_i / 2];
    for (id = 1; id <= 300; id += WORKERS) {
        kit_gang_send(&g, c, kit_kinds[_i % 2], WORKERS, id, 1000);
        kit_gang_take(&g);
    }
    kit_await_no_bodies();
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

/* 1: the first connection has brought the last word for this id; 0: it is closed,
 * and has not. */
static int fin_comes(kit_client *c, uint32_t id)
{
    int fin;

    pthread_mutex_lock(&c->lock);
    while (!kit_entry(c, id)->fin && !c->conns[0].closed) {
        kit_sleep_on(c, "the last word, or the end");
    }
    fin = kit_entry(c, id)->fin;
    pthread_mutex_unlock(&c->lock);
    return fin;
}

/* Nothing of what a client does right after its accept may leave a connection
 * behind that is neither usable nor closed. */
START_TEST(client_speaks_before_hello)
{
    kit_client *c = kit_go_with_client();
    kit_work w;

    kit_client_manner(c, KIT_SPEAK_FIRST);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_client_manner(c, KIT_ACCEPT);
    /* A device may end such a connection, even when all has been sent. */
    if (w.step || !fin_comes(c, 1)) {
        kit_await_slots(0);
    }
    else {
        kit_take(&w);
    }
}
END_TEST

START_TEST(client_leaves_after_accept)
{
    kit_client *c = kit_go_with_client();
    kit_work w;
    rdma_conn_time start = rdma_conn_now();

    kit_client_manner(c, KIT_LEAVE);
    w = kit_request(c, kit_kinds[_i % 2], 1, 1000);
    kit_serve(&w); /* may have got through */
    kit_await_slots(0);
    ck_assert_int_lt(rdma_conn_now() - start, 3 * KIT_SECOND);
    kit_client_manner(c, KIT_ACCEPT);
    others_work(c, 0);
}
END_TEST

static void let_time_pass(rdma_conn_time how_long)
{
    rdma_conn_time until = rdma_conn_now() + how_long;

    while (rdma_conn_now() < until) {
        usleep(1000);
    }
}

/* ---- idle, silent, too many -------------------------------------------- */

START_TEST(idle_connection_is_closed)
{
    kit_client *c;

    kit.conf.idle_timeout = 50 * KIT_MS;
    c = kit_go_with_client();
    kit_pass(c, kit_kinds[_i], 1, 1000);
    kit_await_slots(0);
    kit_await_closed(c, 0);
    kit_pass(c, kit_kinds[_i], 2, 1000);
    ck_assert_uint_eq(c->nconns, 2);
}
END_TEST

/* A worker has held it beyond the idle time, and used it for nothing. */
START_TEST(idle_connection_is_closed_after_a_long_hold)
{
    kit_client *c;
    kit_work w;

    kit.conf.idle_timeout = 20 * KIT_MS;
    c = kit_go_with_client();
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    ck_assert_int_eq(kit_begin(&w), 0);
    let_time_pass(3 * kit.conf.idle_timeout);
    rdma_cache_release(w.slot);
    kit_await_slots(0);
}
END_TEST

/* What has been used until a moment ago is not the one that is idle for longest,
 * though its worker left long ago. */
START_TEST(idle_begins_with_the_end_of_a_lease)
{
    kit_client *a, *b;
    kit_work w;

    kit.conf.max_connections = 2;
    a = kit_go_with_client();
    b = kit_client_new("192.0.2.2");
    w = kit_lease(a, RDMA_HDR_READ, 1, 1000);
    kit_next_works(b, RDMA_HDR_READ, 1, 1);
    kit_take(&w);
    kit_await_no_bodies();
    kit_pass(kit_client_new("192.0.2.3"), RDMA_HDR_READ, 1, 1000);
    kit_await_closed(b, 0);
    ck_assert_uint_eq(a->nopen, 1);
}
END_TEST

START_TEST(idle_time_begins_with_the_end_of_a_lease)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time ended;

    kit.conf.idle_timeout = 200 * KIT_MS;
    c = kit_go_with_client();
    w = kit_lease(c, RDMA_HDR_READ, 1, 1000);
    let_time_pass(2 * kit.conf.idle_timeout);
    ended = rdma_conn_now();
    kit_take(&w);
    kit_await_no_bodies();
    rdma_cache_remind(kit.cache, 0); /* who looks now must not find it idle */
    kit_await_closed(c, 0);
    ck_assert_int_ge(rdma_conn_now() - ended, kit.conf.idle_timeout);
}
END_TEST

/* The pool takes longer than a client has for its answer: that is no fault of the
 * client's, and no worker waits for all of it. */
START_TEST(pool_is_slower_than_a_connect)
{
    kit_client *c;
    kit_work w;

    kit.conf.connect_timeout = 200 * KIT_MS;
    c = kit_go_with_client();
    fake_hold("ibv_reg_mr");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_run(&w, kit_serve_thread);
    fake_await_held();
    kit_join(&w);
    ck_assert_str_eq(w.step, "wait");
    ck_assert_int_eq(w.why, RDMA_HDR_CONNECT);
    let_time_pass(kit.conf.connect_timeout);
    ck_assert(!kit_is_suspect(c));
    kit_client_manner(c, KIT_HOLD);
    fake_hold(NULL);
    kit_await_requests(c, 1);
    let_time_pass(20 * KIT_MS);
    ck_assert(!kit_is_suspect(c));
    kit_client_manner(c, KIT_ACCEPT);
    kit_client_conn(c, 0);
    kit_pass(c, RDMA_HDR_WRITE, 2, 1000);
    ck_assert_uint_eq(c->nreqs, 1);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsFailedUnreachable), 0);
}
END_TEST

START_TEST(silent_connection_is_asked)
{
    kit_client *c = kit_go_with_client();

    kit_next_works(c, RDMA_HDR_WRITE, 1, 1);
    kit_age(6 * KIT_SECOND);
    kit_next_works(c, RDMA_HDR_WRITE, 2, 1);
}
END_TEST

START_TEST(silent_connection_does_not_answer)
{
    kit_client *c;

    kit.conf.connect_timeout = 200 * KIT_MS;
    c = kit_go_with_client();
    kit_next_works(c, RDMA_HDR_WRITE, 1, 1);
    kit_freeze(c, 1);
    kit_age(6 * KIT_SECOND);
    kit_declined(c, RDMA_HDR_WRITE, 2, 1000, "wait", RDMA_HDR_CONNECT);
    kit_await_slots(0);
    kit_next_works(c, RDMA_HDR_WRITE, 3, 2);
}
END_TEST

START_TEST(limit_in_all_evicts_the_one_idle_for_longest)
{
    kit_client *c[4];
    unsigned i;

    kit.conf.max_connections = 3;
    kit_go();
    for (i = 0; i < 4; i++) {
        char addr[] = "192.0.2.1";

        addr[8] = (char)('1' + i);
        c[i] = kit_client_new(addr);
        kit_next_works(c[i], RDMA_HDR_WRITE, 1, 1);
    }
    kit_await_closed(c[0], 0);
    kit_await_slots(3);
    ck_assert_uint_eq(c[1]->nopen + c[2]->nopen + c[3]->nopen, 3);
}
END_TEST

START_TEST(limit_in_all_spares_what_is_in_use)
{
    kit_client *a, *b;
    kit_work w;

    kit.conf.max_connections = 1;
    a = kit_go_with_client();
    b = kit_client_new("192.0.2.2");
    w = kit_lease(a, RDMA_HDR_READ, 1, 1000); /* no worker any more */
    kit_declined(b, RDMA_HDR_WRITE, 1, 1000, "acquire", RDMA_HDR_BUSY);
    kit_take(&w);
    kit_await_no_bodies();
    kit_pass(b, RDMA_HDR_WRITE, 2, 1000);
    kit_await_closed(a, 0);
}
END_TEST

/* Whoever names the same client, but for one thing, gets nothing of its connection:
 * another token, a token that was overheard and comes from another address, or is
 * used at another port. */
START_TEST(an_endpoint_is_address_port_and_token)
{
    kit_client *c = kit_go_with_client();
    kit_client *other = kit_client_new("192.0.2.1");
    kit_work w;

    kit_pass(c, RDMA_HDR_READ, 1, 1000);
    w = kit_request(c, RDMA_HDR_READ, 2, 1000);
    if (_i == 0) {
        c->token[RDMA_HDR_TOKEN_LEN - 1] ^= 1;
    }
    else if (_i == 1) {
        inet_pton(AF_INET, "192.0.2.3", &c->addr.sin_addr);
    }
    else {
        memcpy(other->token, c->token, sizeof(c->token));
        w.client = other;
    }
    kit_serve(&w);
    kit_take(&w); /* the fake looks at ports only: the same client answers */
    kit_await_slots(2);
    ck_assert_uint_eq(c->nreqs + other->nreqs, 2);
}
END_TEST

START_TEST(limit_per_client)
{
    kit_client *same[3], *other;
    kit_work w[3];
    unsigned i;

    kit.conf.max_connections_per_client = 2;
    kit_go();
    for (i = 0; i < 3; i++) {
        same[i] = kit_client_new("192.0.2.1");
        w[i] = kit_request(same[i], RDMA_HDR_WRITE, 1, 1000);
    }
    other = kit_client_new("192.0.2.2");
    ck_assert_int_eq(kit_begin(&w[0]), 0);
    ck_assert_int_eq(kit_begin(&w[1]), 0);
    ck_assert_int_eq(kit_begin(&w[2]), -1);
    ck_assert_int_eq(w[2].why, RDMA_HDR_BUSY);
    kit_pass(other, RDMA_HDR_WRITE, 1, 1000);
    rdma_cache_release(w[0].slot);
    let_time_pass(KIT_MS); /* or both have been idle for as long */
    rdma_cache_release(w[1].slot);
    kit_serve(&w[2]);
    kit_take(&w[2]);
    kit_await_closed(same[0], 0);
    ck_assert_uint_eq(other->nopen, 1);
}
END_TEST

/* ---- stopping ---------------------------------------------------------- */

static void *stop_thread(void *give_up)
{
    rdma_cache_stopping(kit.cache, 1);
    rdma_cache_stop(kit.cache, give_up);
    return NULL;
}

/* It has stopped, and waited for nobody's time to run out. */
static void has_stopped_at_once(rdma_conn_time start)
{
    ck_assert_int_lt(rdma_conn_now() - start, 2 * KIT_SECOND);
    kit.cache = NULL;
}

START_TEST(graceful_stop_waits_for_leases)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_lease(c, RDMA_HDR_READ, 1, 100000);
    pthread_t thread;
    rdma_conn_time start;

    rdma_cache_stopping(kit.cache, 1);
    /* nothing new */
    kit_declined(c, RDMA_HDR_READ, 2, 1, "acquire", RDMA_HDR_BUSY);
    pthread_create(&thread, NULL, stop_thread, NULL);
    kit_take(&w);
    start = rdma_conn_now(); /* it ends with the lease, not after its time */
    pthread_join(thread, NULL);
    has_stopped_at_once(start);
    kit_await_closed(c, 0);
}
END_TEST

START_TEST(graceful_stop_waits_for_workers)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, kit_kinds[_i], 1, 2 * BLOCK);
    pthread_t thread;

    ck_assert_int_eq(kit_begin(&w), 0);
    pthread_create(&thread, NULL, stop_thread, NULL);
    ck_assert_int_eq(kit_open(&w), 0);
    kit_complete(&w);
    pthread_join(thread, NULL);
    kit.cache = NULL;
}
END_TEST

/* Hard, or gracefully until it is given up. */
START_TEST(stop_ends_leases)
{
    kit_client *c;
    volatile int give_up = 1;
    rdma_conn_time start;

    kit.conf.lease_timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    kit_lease(c, RDMA_HDR_READ, 1, 1000);
    start = rdma_conn_now();
    if (_i) {
        stop_thread((void *)(uintptr_t)&give_up);
    }
    else {
        kit_stop();
    }
    has_stopped_at_once(start);
    kit_await_closed(c, 0);
}
END_TEST

/* The client has stopped; a worker waits for room, or for the fin to go. */
START_TEST(hard_stop_ends_the_wait_of_a_worker)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time start;

    kit.conf.timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    w = kit_request(c, RDMA_HDR_WRITE, 1, 30 * BLOCK);
    ck_assert_int_eq(kit_begin(&w), 0);
    rdma_cache_release(w.slot);
    kit_get_stuck(&w, c, 2);
    start = rdma_conn_now();
    rdma_cache_stopping(kit.cache, 0);
    kit_join(&w);
    ck_assert_str_eq(w.step, "space");
    ck_assert_uint_eq(w.conn, 1);
    kit_stop();
    has_stopped_at_once(start);
}
END_TEST

START_TEST(stop_ends_a_connect)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time start;
    int graceful = _i & 1;

    kit.conf.connect_timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    fake_route_to(kit_client_port(c), _i & 2 ? FAKE_SILENT : FAKE_BLOCKED);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1);
    kit_run(&w, kit_serve_thread);
    kit_await_connect(c);
    start = rdma_conn_now();
    rdma_cache_stopping(kit.cache, graceful);
    kit_join(&w);
    ck_assert_str_eq(w.step, "wait");
    ck_assert_int_eq(w.why, RDMA_HDR_BUSY);
    rdma_cache_stop(kit.cache, NULL);
    has_stopped_at_once(start);
}
END_TEST

START_TEST(stop_before_the_first_request)
{
    kit_go();
    ck_assert_uint_eq(kit_used(), 0);
    rdma_cache_stopping(kit.cache, 1);
    rdma_cache_stopping(kit.cache, 0);
    rdma_cache_stop(kit.cache, NULL);
    kit.cache = NULL;
}
END_TEST

/* Connections are made and bodies are under way while it stops, hard. */
START_TEST(stop_under_load)
{
    kit_client *c;
    kit_gang g;
    unsigned i;
    rdma_conn_time start;

    kit.conf.memory = 32 * 1024 * 1024;
    c = kit_go_with_client();
    kit_gang_send(&g, c, kit_kinds[_i % 2], WORKERS, 1, 3 * BLOCK);
    if (_i & 2) {
        kit_client_conn(c, 0);
    }
    start = rdma_conn_now();
    rdma_cache_stopping(kit.cache, 0);
    kit_gang_join(&g);
    kit_stop();
    has_stopped_at_once(start);
    for (i = 0; i < WORKERS; i++) {
        ck_assert(g.works[i].step == NULL || g.works[i].slot == NULL);
    }
}
END_TEST

/* A thread of ours does not come back in time, and outlives httpd's pools. */
START_TEST(stop_gets_stuck)
{
    kit_client *c = kit_go_with_client();

    kit_pass(c, RDMA_HDR_READ, 1, 1);
    kit_await_no_bodies();
    fake_hold("rdma_destroy_qp");
    rdma_cache_stopping(kit.cache, 0);
    ck_assert_int_eq(rdma_cache_stop(kit.cache, NULL), -1);
    apr_terminate();
    fake_hold(NULL);
    kit_await_slots(0);
    ck_assert_int_eq(apr_initialize(), APR_SUCCESS);
    kit_stop();
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "connecting");

    tcase_add_test(t, first_use_by_many_connects_once);
    tcase_add_loop_test(t, connect_rejected, 0, 2);
    tcase_add_test(t, connect_with_a_wrong_token);
    tcase_add_test(t, connect_refused);
    tcase_add_test(t, connect_without_a_device);
    tcase_add_loop_test(t, connect_into_a_black_hole, 0, 2);
    tcase_add_test(t, connect_that_nobody_answers);
    tcase_add_test(t, black_hole_takes_half_of_the_connectors);
    tcase_add_loop_test(t, client_of_another_depth, 0, 6);
    tcase_add_test(t, client_speaks_before_hello);
    tcase_add_loop_test(t, client_leaves_after_accept, 0, 6);
    t = kit_group(s, "idle");
    tcase_add_loop_test(t, idle_connection_is_closed, 0, 2);
    tcase_add_test(t, idle_connection_is_closed_after_a_long_hold);
    tcase_add_test(t, idle_begins_with_the_end_of_a_lease);
    tcase_add_test(t, idle_time_begins_with_the_end_of_a_lease);
    tcase_add_test(t, pool_is_slower_than_a_connect);
    tcase_add_test(t, silent_connection_is_asked);
    tcase_add_test(t, silent_connection_does_not_answer);
    tcase_add_test(t, limit_in_all_evicts_the_one_idle_for_longest);
    tcase_add_test(t, limit_in_all_spares_what_is_in_use);
    tcase_add_loop_test(t, an_endpoint_is_address_port_and_token, 0, 3);
    tcase_add_test(t, limit_per_client);
    t = kit_group(s, "stopping");
    tcase_add_test(t, graceful_stop_waits_for_leases);
    tcase_add_loop_test(t, graceful_stop_waits_for_workers, 0, 2);
    tcase_add_loop_test(t, stop_ends_leases, 0, 2);
    tcase_add_test(t, hard_stop_ends_the_wait_of_a_worker);
    tcase_add_loop_test(t, stop_ends_a_connect, 0, 4);
    tcase_add_test(t, stop_before_the_first_request);
    tcase_add_loop_test(t, stop_under_load, 0, 4);
    tcase_add_test(t, stop_gets_stuck);
}

int main(void)
{
    return common_main("engine, connections", add);
}
