/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What the engine lets one client have, so that others have something, and what
 * it keeps of clients and devices that have failed.
 */
#include "kit.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)

/* ---- memory ------------------------------------------------------------ */

/* A client address has its share, however many endpoints it has. */
START_TEST(arenas_of_one_address)
{
    kit_client *same[3], *other;
    kit_work w[3], o;
    unsigned i;

    kit_go();
    for (i = 0; i < 3; i++) {
        same[i] = kit_client_new("192.0.2.1");
        w[i] = kit_request(same[i], RDMA_HDR_READ, 1, kit.conf.memory / 8);
        kit_serve(&w[i]);
    }
    ck_assert_ptr_null(w[0].step);
    ck_assert_ptr_null(w[1].step);
    ck_assert_str_eq(w[2].step, "open");
    ck_assert_int_eq(w[2].why, RDMA_HDR_MEMORY);
    other = kit_client_new("192.0.2.2");
    o = kit_request(other, RDMA_HDR_READ, 1, kit.conf.memory / 8);
    kit_serve(&o);
    kit_take(&o);
    kit_take(&w[0]);
    kit_take(&w[1]);
    kit_await_no_bodies();
    /* What lies idle on another connection of the same client is given up. */
    w[2] = kit_request(same[2], RDMA_HDR_READ, 2, kit.conf.memory / 8);
    kit_serve(&w[2]);
    kit_take(&w[2]);
}
END_TEST

/* The first of them do not take what the others need. */
START_TEST(many_of_one_address)
{
    enum { MANY = 44 };
    kit_client *c;
    kit_work w[MANY];
    unsigned i;

    kit.conf.memory = 12 * 1024 * 1024; /* 3 MiB for them, or 48 times 64 KiB */
    kit.conf.max_connections = kit.conf.max_connections_per_client = MANY;
    kit_go();
    for (i = 0; i < MANY; i++) {
        c = kit_client_new("192.0.2.1");
        w[i] = kit_request(c, RDMA_HDR_READ, 1, 60000);
        kit_serve(&w[i]);
        ck_assert_msg(!w[i].step, "client %u", i);
    }
    for (i = 0; i < MANY; i++) {
        kit_take(&w[i]);
    }
}
END_TEST

/* Requests register nothing once their connection has what it needs. */
START_TEST(nothing_is_registered_on_the_way)
{
    rdma_hdr_kind kind = _i ? RDMA_HDR_READ : RDMA_HDR_WRITE;
    kit_client *c;
    kit_work w;
    uint32_t id;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, kind, 1, 10000);
    kit_serve(&w);
    kit_take(&w);
    kit_await_no_bodies();
    fake_fail("ibv_reg_mr", 1, ENOMEM);
    for (id = 2; id <= 100; id++) {
        w = kit_request(c, kind, id, 100 * id);
        kit_serve(&w);
        kit_take(&w);
        kit_await_no_bodies();
    }
    ck_assert(!fake_failed());
}
END_TEST

/* Nor do they need another thread, where nobody is in the way. */
START_TEST(no_other_thread_is_needed)
{
    rdma_hdr_kind kind = _i ? RDMA_HDR_READ : RDMA_HDR_WRITE;
    kit_client *c;
    kit_work w;

    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, kind, 1, 2 * BLOCK);
    kit_serve(&w);
    kit_take(&w);
    kit_await_no_bodies();
    kit_stop_progress(1);
    w = kit_request(c, kind, 2, 2 * BLOCK);
    kit_serve(&w);
    kit_take(&w);
    kit_stop_progress(0);
    kit_await_no_bodies();
}
END_TEST

START_TEST(pool_that_is_not_there_is_said_once)
{
    kit_client *c;
    kit_work w;
    uint32_t id;

    kit.conf.idle_timeout = 10 * KIT_MS;
    kit_go();
    c = kit_client_new("192.0.2.1");
    fake_memlock(fake_registered() + 65536); /* for messages, not for blocks */
    for (id = 1; id <= 3; id++) {
        w = kit_request(c, RDMA_HDR_WRITE, id, 1000);
        ck_assert_int_eq(kit_serve(&w), -1);
        ck_assert_str_eq(w.step, "open");
        ck_assert_int_eq(w.why, RDMA_HDR_MEMORY);
        kit_await_slots(0);
    }
    ck_assert_uint_eq(c->nconns, 3);
    ck_assert_uint_eq(kit.logged[54], 1);
}
END_TEST

/* Registering the pool may take seconds: nobody waits for it who does not want
 * it, least of all the progress thread. */
START_TEST(pool_is_registered_unlocked)
{
    kit_client *c, *reader;
    kit_work w, v, r;
    pthread_t thread, second;

    kit_go();
    c = kit_client_new("192.0.2.1");
    reader = kit_client_new("192.0.2.2");
    r = kit_request(reader, RDMA_HDR_READ, 1, 1000);
    kit_serve(&r);
    kit_take(&r);
    kit_await_no_bodies();
    fake_hold("ibv_reg_mr");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    v = kit_request(reader, RDMA_HDR_WRITE, 2, 1000);
    pthread_create(&thread, NULL, kit_serve_thread, &w);
    fake_await_held();
    pthread_create(&second, NULL, kit_serve_thread, &v); /* wants it, too */
    r = kit_request(reader, RDMA_HDR_READ, 3, 1000);
    kit_serve(&r);
    kit_take(&r);
    kit_await_no_bodies(); /* the progress thread has heard of it */
    fake_hold(NULL);
    pthread_join(thread, NULL);
    pthread_join(second, NULL);
    kit_take(&w);
    kit_take(&v);
}
END_TEST

/* ---- connections ------------------------------------------------------- */

/* Its answer to PING stands behind WRITEs: it is alive, and its transfers must
 * not end because somebody else asks for it. */
START_TEST(busy_connection_is_slow_to_answer)
{
    kit_client *c;
    kit_work w, v;
    pthread_t thread;
    struct rdma_cm_id *id;

    kit.conf.timeout = 20 * KIT_SECOND;
    kit.conf.connect_timeout = 200 * KIT_MS;
    kit_go();
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_take(&w);
    kit_await_no_bodies();
    id = rdma_conn_id(kit_client_conn(c, 0)->conn);
    fake_freeze(id, 1);
    w = kit_request(c, RDMA_HDR_WRITE, 2, 30 * BLOCK);
    pthread_create(&thread, NULL, kit_serve_thread, &w);
    kit_await_stuck(c, 0, 4);
    kit_age(6 * KIT_SECOND);
    v = kit_request(c, RDMA_HDR_WRITE, 3, 1000);
    ck_assert_int_eq(kit_serve(&v), -1);
    ck_assert_str_eq(v.step, "wait");
    ck_assert_int_eq(v.why, RDMA_HDR_CONNECT);
    fake_freeze(id, 0);
    pthread_join(thread, NULL);
    kit_take(&w);
    v = kit_request(c, RDMA_HDR_WRITE, 4, 1000);
    kit_serve(&v);
    kit_take(&v);
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

/* It has receives for many more messages than we, and need not return a credit
 * before half of them are used. */
START_TEST(deep_client_says_nothing)
{
    kit_client *c;
    kit_work w;
    uint32_t id;

    kit.conf.lease_timeout = 60 * KIT_SECOND;
    kit_go();
    c = kit_client_new("192.0.2.1");
    c->depth = 255;
    kit_client_mute(c, 1);
    for (id = 1; id <= 100; id++) {
        w = kit_request(c, RDMA_HDR_WRITE, id, 1000);
        kit_serve(&w);
        kit_take(&w);
    }
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

/* A request that has started the connect, and has not come to its answer yet,
 * keeps nothing. */
START_TEST(prepared_connection)
{
    kit_client *c;
    kit_work w;
    rdma_cache_target t = {.kind = RDMA_HDR_WRITE};

    kit_go();
    c = kit_client_new("192.0.2.1");
    memcpy(&t.remote, &c->addr, sizeof(c->addr));
    t.local.ss_family = AF_INET;
    memcpy(t.token, c->token, sizeof(t.token));
    rdma_cache_prepare(kit.cache, &t);
    kit_client_conn(c, 0);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_take(&w);
    ck_assert_uint_eq(c->nconns, 1);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsReused), 0);
    rdma_cache_prepare(kit.cache, &t);
    fake_remove_device();
    kit_await_slots(0);
    kit_await_no_devices();
}
END_TEST

/* ---- black holes ------------------------------------------------------- */

typedef struct hole {
    kit_work work;
    pthread_t thread;
} hole;

static void fall_in(hole *h, const char *addr)
{
    kit_client *c = kit_client_new(addr);

    fake_route_to(kit_client_port(c), FAKE_BLOCKED);
    h->work = kit_request(c, RDMA_HDR_WRITE, 1, 1);
    pthread_create(&h->thread, NULL, kit_serve_thread, &h->work);
}

/* Clients that did not answer last time have one connector each, with whatever
 * endpoint they come; others need not wait for them. */
START_TEST(suspects_have_one_connector)
{
    hole first[2], then[8];
    kit_client *c;
    kit_work w;
    rdma_conn_time start, rounds;
    unsigned connects = 0;
    unsigned i;

    kit.conf.connect_timeout = 500 * KIT_MS;
    kit_go();
    fall_in(&first[0], "192.0.2.1");
    fall_in(&first[1], "192.0.2.2");
    pthread_join(first[0].thread, NULL);
    pthread_join(first[1].thread, NULL);
    kit_await_slots(0);
    start = rdma_conn_now();
    for (i = 0; i < 8; i++) {
        fall_in(&then[i], i % 2 ? "192.0.2.1" : "192.0.2.2");
    }
    kit_await_slots(8);
    c = kit_client_new("192.0.2.3");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_take(&w);
    /* One each at a time. */
    rounds = 1 + (rdma_conn_now() - start) / kit.conf.connect_timeout;
    for (i = 0; i < 8; i++) {
        connects += fake_connects(kit_client_port(then[i].work.client));
    }
    ck_assert_uint_le(connects, 2 * (unsigned)rounds);
    for (i = 0; i < 8; i++) {
        pthread_join(then[i].thread, NULL);
        ck_assert_str_eq(then[i].work.step, "wait");
    }
    kit_await_slots(1);
    fake_route_to(kit_client_port(first[0].work.client), FAKE_NORMAL);
    kit_age_back_off(first[0].work.client, RDMA_HDR_WRITE);
    w = kit_request(first[0].work.client, RDMA_HDR_WRITE, 2, 1000);
    kit_serve(&w); /* it is back */
    kit_take(&w);
}
END_TEST

/* Whoever waits behind the connects of its own address gets its turn. */
START_TEST(queue_outlasts_a_connect)
{
    hole holes[4];
    kit_client *c;
    kit_work w;
    unsigned i;

    kit.conf.connect_timeout = KIT_SECOND;
    kit_go();
    for (i = 0; i < 4; i++) {
        fall_in(&holes[i], "192.0.2.1");
    }
    for (i = 0; i < 4; i++) {
        while (!fake_connects(kit_client_port(holes[i].work.client))) {
            usleep(1000);
        }
    }
    c = kit_client_new("192.0.2.1");
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_serve(&w);
    kit_take(&w);
    for (i = 0; i < 4; i++) {
        pthread_join(holes[i].thread, NULL);
    }
}
END_TEST

START_TEST(back_off_doubles)
{
    const rdma_conn_time first = 10 * KIT_SECOND;
    const rdma_conn_time most = 300 * KIT_SECOND;
    rdma_conn_time expected = first;
    kit_client *c;
    kit_work w;
    uint32_t id;

    kit_go();
    c = kit_client_new("192.0.2.1");
    kit_client_manner(c, KIT_REJECT);
    for (id = 1; id <= 8; id++) {
        rdma_conn_time left;

        w = kit_request(c, RDMA_HDR_WRITE, id, 1);
        ck_assert_int_eq(kit_serve(&w), -1);
        ck_assert_str_eq(w.step, "wait");
        left = kit_backed_off(c, RDMA_HDR_WRITE);
        ck_assert_int_le(left, expected);
        ck_assert_int_gt(left, expected - 5 * KIT_SECOND);
        expected = expected * 2 > most ? most : expected * 2;
        kit_age_back_off(c, RDMA_HDR_WRITE);
    }
    ck_assert_int_eq(expected, most);
    kit_client_manner(c, KIT_ACCEPT);
    w = kit_request(c, RDMA_HDR_WRITE, id++, 1);
    kit_serve(&w);
    kit_take(&w);
    kit_await_no_bodies();
    kit_disconnect(kit_client_conn(c, 0));
    kit_await_slots(0);
    kit_client_manner(c, KIT_REJECT);
    w = kit_request(c, RDMA_HDR_WRITE, id, 1);
    ck_assert_int_eq(kit_serve(&w), -1);
    ck_assert_int_le(kit_backed_off(c, RDMA_HDR_WRITE), first);
}
END_TEST

/* ---- devices ----------------------------------------------------------- */

/* Nothing watches the device; who connects over it hears that it goes. */
START_TEST(device_leaves_during_a_connect)
{
    kit_client *c;
    kit_work w;
    pthread_t thread;

    kit_go();
    c = kit_client_new("192.0.2.1");
    fake_fail("rdma_bind_addr", 1, EADDRNOTAVAIL);
    kit_client_manner(c, KIT_HOLD);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1);
    pthread_create(&thread, NULL, kit_serve_thread, &w);
    kit_await_requests(c, 1);
    ck_assert(fake_failed());
    fake_remove_device();
    pthread_join(thread, NULL);
    ck_assert_str_eq(w.step, "wait");
    ck_assert_int_eq(w.why, RDMA_HDR_DEVICE);
    kit_await_no_devices();
    kit_client_manner(c, KIT_ACCEPT);
}
END_TEST

/* The first address was none to watch by, the second one is. */
START_TEST(watch_is_made_later)
{
    kit_client *c;
    kit_work w;

    kit.conf.idle_timeout = 10 * KIT_MS;
    kit_go();
    c = kit_client_new("192.0.2.1");
    fake_fail("rdma_bind_addr", 1, EADDRNOTAVAIL);
    w = kit_request(c, RDMA_HDR_WRITE, 1, 1);
    kit_serve(&w);
    kit_take(&w);
    kit_await_slots(0);
    ck_assert(fake_failed());
    w = kit_request(c, RDMA_HDR_WRITE, 2, 1);
    kit_serve(&w);
    kit_take(&w);
    kit_await_slots(0);
    fake_remove_device(); /* which nobody uses */
    kit_await_no_devices();
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "memory");

    tcase_add_test(t, arenas_of_one_address);
    tcase_add_test(t, many_of_one_address);
    tcase_add_loop_test(t, nothing_is_registered_on_the_way, 0, 2);
    tcase_add_loop_test(t, no_other_thread_is_needed, 0, 2);
    tcase_add_test(t, pool_that_is_not_there_is_said_once);
    tcase_add_test(t, pool_is_registered_unlocked);
    t = kit_group(s, "connections");
    tcase_add_test(t, busy_connection_is_slow_to_answer);
    tcase_add_test(t, deep_client_says_nothing);
    tcase_add_test(t, prepared_connection);
    t = kit_group(s, "black holes");
    tcase_add_test(t, suspects_have_one_connector);
    tcase_add_test(t, queue_outlasts_a_connect);
    tcase_add_test(t, back_off_doubles);
    t = kit_group(s, "devices");
    tcase_add_test(t, device_leaves_during_a_connect);
    tcase_add_test(t, watch_is_made_later);
}

int main(void)
{
    return kit_main("engine, limits", add);
}
