/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What the engine lets one client have, so that others have something, and what
 * it keeps of clients and devices that have failed.
 */
#include "kit.h"

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#define BLOCK ((uint64_t)RDMA_MEM_BLOCK)
#define SUSPECTS 4 /* that are connected to at a time: half of the connectors */

/* ---- memory ------------------------------------------------------------ */

/* A client address has its share, however many endpoints it has. */
START_TEST(arenas_of_one_address)
{
    kit_client *same[3];
    kit_work w[2];
    unsigned i;

    kit_go();
    for (i = 0; i < 3; i++) {
        same[i] = kit_client_new("192.0.2.1");
    }
    w[0] = kit_lease(same[0], RDMA_HDR_READ, 1, kit.conf.memory / 8);
    w[1] = kit_lease(same[1], RDMA_HDR_READ, 1, kit.conf.memory / 8);
    kit_declined(same[2], RDMA_HDR_READ, 1, kit.conf.memory / 8, "open",
                 RDMA_HDR_MEMORY);
    kit_pass(kit_client_new("192.0.2.2"), RDMA_HDR_READ, 1,
             kit.conf.memory / 8);
    kit_take(&w[0]);
    kit_take(&w[1]);
    kit_await_no_bodies();
    /* What lies idle on another connection of the same client is given up. */
    kit_pass(same[2], RDMA_HDR_READ, 2, kit.conf.memory / 8);
}
END_TEST

/* Nor has it more than half of the blocks for writing. */
START_TEST(blocks_of_one_address)
{
    enum { MANY = 5 }; /* the first takes four, and each of the others one */
    kit_client *same[MANY + 1];
    kit_work w[MANY];
    unsigned i;

    kit.conf.memory = 32 * BLOCK; /* half of them for writing */
    kit_go();
    for (i = 0; i <= MANY; i++) {
        same[i] = kit_client_new("192.0.2.1");
    }
    for (i = 0; i < MANY; i++) {
        w[i] = kit_request(same[i], RDMA_HDR_WRITE, 1, 4 * BLOCK);
        kit_start(&w[i], 0);
    }
    kit_declined(same[i], RDMA_HDR_WRITE, 1, 1000, "open", RDMA_HDR_MEMORY);
    kit_pass(kit_client_new("192.0.2.2"), RDMA_HDR_WRITE, 1, 4 * BLOCK);
    for (i = 0; i < MANY; i++) {
        kit_complete(&w[i]);
    }
    kit_await_all_blocks();
    kit_pass(same[MANY], RDMA_HDR_WRITE, 2, 4 * BLOCK);
}
END_TEST

/* However much there is, nobody waits for it to be pinned: more is streamed. */
START_TEST(arenas_are_not_huge)
{
    const uint64_t most = 64 * 1024 * 1024;
    kit_client *c;
    kit_work w[3];
    unsigned i;

    kit.conf.memory = (size_t)1 << 30;
    c = kit_go_with_client();
    for (i = 0; i < 3; i++) { /* its share is not less for that */
        w[i] = kit_request(c, RDMA_HDR_READ, i + 1, i < 2 ? most : most + 1);
        kit_start(&w[i], 0);
        ck_assert_int_eq(rdma_body_streamed(w[i].body), i == 2);
    }
    for (i = 0; i < 3; i++) {
        kit_abandon(&w[i], RDMA_HDR_ABORT_CANCELLED);
    }
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
    rdma_hdr_kind kind = kit_kinds[_i];
    kit_client *c = kit_go_with_client();
    uint32_t id;

    kit_pass(c, kind, 1, 10000);
    kit_await_no_bodies();
    fake_fail("ibv_reg_mr", 1, ENOMEM);
    for (id = 2; id <= 100; id++) {
        kit_pass(c, kind, id, 100 * id);
        kit_await_no_bodies();
    }
    ck_assert(!fake_failed());
}
END_TEST

/* Nor do they need another thread, where nobody is in the way. */
START_TEST(no_other_thread_is_needed)
{
    rdma_hdr_kind kind = kit_kinds[_i];
    kit_client *c = kit_go_with_client();

    kit_pass(c, kind, 1, 2 * BLOCK);
    kit_await_no_bodies();
    kit_stop_progress(1);
    kit_pass(c, kind, 2, 2 * BLOCK);
    kit_stop_progress(0);
    kit_await_no_bodies();
}
END_TEST

START_TEST(pool_that_is_not_there_is_said_once)
{
    kit_client *c;
    uint32_t id;

    kit.conf.idle_timeout = 10 * KIT_MS;
    c = kit_go_with_client();
    fake_memlock(fake_registered() + 65536); /* for messages, not for blocks */
    for (id = 1; id <= 3; id++) {
        kit_declined(c, RDMA_HDR_WRITE, id, 1000, "open", RDMA_HDR_MEMORY);
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
    kit_client *c = kit_go_with_client();
    kit_client *reader = kit_client_new("192.0.2.2");
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 1000);
    kit_work v = kit_request(reader, RDMA_HDR_WRITE, 2, 1000);

    kit_pass(reader, RDMA_HDR_READ, 1, 1000);
    kit_await_no_bodies();
    fake_hold("ibv_reg_mr");
    kit_run(&w, kit_serve_thread);
    fake_await_held();
    kit_run(&v, kit_serve_thread); /* wants it, too */
    kit_pass(reader, RDMA_HDR_READ, 3, 1000);
    kit_await_no_bodies(); /* the progress thread has heard of it */
    fake_hold(NULL);
    kit_join(&w);
    kit_join(&v);
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
    kit_work w;

    kit.conf.timeout = 20 * KIT_SECOND;
    kit.conf.connect_timeout = 200 * KIT_MS;
    c = kit_go_with_client();
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    kit_await_no_bodies();
    kit_get_stuck(&w, c, 2);
    kit_age(6 * KIT_SECOND);
    kit_declined(c, RDMA_HDR_WRITE, 3, 1000, "wait", RDMA_HDR_CONNECT);
    kit_freeze(c, 0);
    kit_join(&w);
    kit_take(&w);
    kit_next_works(c, RDMA_HDR_WRITE, 4, 1);
}
END_TEST

/* It is asked once, and after that nobody waits for its answer again. */
START_TEST(silent_connection_is_asked_once)
{
    kit_client *c;
    kit_work w;
    rdma_conn_time began;
    uint32_t id;

    kit.conf.lease_timeout = kit.conf.timeout = 60 * KIT_SECOND;
    kit.conf.connect_timeout = 2 * KIT_SECOND;
    c = kit_go_with_client();
    w = kit_lease(c, RDMA_HDR_READ, 1, 1000); /* for which it is kept */
    kit_freeze(c, 1);
    kit_age(6 * KIT_SECOND);
    kit_declined(c, RDMA_HDR_READ, 2, 1000, "wait", RDMA_HDR_CONNECT);
    began = rdma_conn_now();
    for (id = 3; id <= 60; id++) {
        kit_declined(c, RDMA_HDR_READ, id, 1000, "wait", RDMA_HDR_CONNECT);
    }
    ck_assert_int_lt(rdma_conn_now() - began, kit.conf.connect_timeout);
    kit_freeze(c, 0);
    kit_take(&w);
    kit_await_no_bodies(); /* the last word has been heard */
    kit_next_works(c, RDMA_HDR_READ, 61, 1);
}
END_TEST

static unsigned how_many_are_over(kit_work *w, unsigned n)
{
    unsigned over = 0;
    unsigned i;

    for (i = 0; i < n; i++) {
        pthread_mutex_lock(&w[i].client->lock);
        over += w[i].over != 0;
        pthread_mutex_unlock(&w[i].client->lock);
    }
    return over;
}

/* Small bodies hold no worker, unless their client takes nothing: then they count
 * as streams do, and whoever is too many is told so at once. */
START_TEST(clients_that_take_nothing_hold_half_of_the_workers)
{
    enum { MANY = 16, HALF = 2 }; /* more than go on the way */
    kit_client *c;
    kit_work w[MANY];
    rdma_conn_time until;
    unsigned failed = 0;
    unsigned i;

    kit.conf.timeout = 60 * KIT_SECOND;
    kit.conf.max_streams = HALF;
    kit.conf.memory = 32 * 1024 * 1024;
    c = kit_go_with_client();
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    kit_await_no_bodies();
    kit_freeze(c, 1);
    for (i = 0; i < MANY; i++) {
        w[i] = kit_request(c, RDMA_HDR_WRITE, i + 2, 1000);
        w[i].at = i * BLOCK;
        kit_run(&w[i], kit_serve_thread);
    }
    until = rdma_conn_now() + KIT_PATIENT;
    while (how_many_are_over(w, MANY) < MANY - HALF) {
        ck_assert_msg(rdma_conn_now() < until, "they wait");
        usleep(1000);
    }
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsOpen), HALF);
    kit_freeze(c, 0);
    for (i = 0; i < MANY; i++) {
        kit_join(&w[i]);
        failed += w[i].step != NULL;
    }
    ck_assert_uint_gt(failed, 0);
    ck_assert_uint_le(failed, MANY - HALF);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_StreamsOpen), 0);
    for (i = 0; i < MANY; i++) {
        if (!w[i].step) {
            kit_take(&w[i]);
        }
    }
    kit_next_works(c, RDMA_HDR_WRITE, MANY + 2, 1);
}
END_TEST

/* It has receives for many more messages than we, and need not return a credit
 * before half of them are used. */
START_TEST(deep_client_says_nothing)
{
    kit_client *c;
    uint32_t id;

    kit.conf.lease_timeout = 60 * KIT_SECOND;
    c = kit_go_with_client();
    c->depth = 255;
    kit_client_mute(c, 1);
    for (id = 1; id <= 100; id++) {
        kit_pass(c, RDMA_HDR_WRITE, id, 1000);
    }
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

/* A request that has started the connect, and has not come to its answer yet,
 * keeps nothing. */
START_TEST(prepared_connection)
{
    kit_client *c = kit_go_with_client();
    rdma_cache_target t = kit_target(c, RDMA_HDR_WRITE);

    rdma_cache_prepare(kit.cache, &t);
    kit_client_conn(c, 0);
    kit_pass(c, RDMA_HDR_WRITE, 1, 1000);
    ck_assert_uint_eq(c->nconns, 1);
    ck_assert_uint_eq(kit_count(RDMA_COUNT_ConnectionsReused), 0);
    rdma_cache_prepare(kit.cache, &t);
    fake_remove_device();
    kit_await_slots(0);
    kit_await_no_devices();
}
END_TEST

/* Each makes room for the next one faster than the undertaker can take it apart:
 * that comes to an end before the descriptors do. */
START_TEST(evicted_faster_than_taken_apart)
{
    enum { ALLOWED = 1 + 8 };
    kit_client *c;
    char addr[16];
    unsigned i;

    kit.conf.max_connections = 1;
    kit_go();
    fake_hold("rdma_destroy_qp");
    for (i = 1; i <= ALLOWED; i++) {
        snprintf(addr, sizeof(addr), "192.0.2.%u", i);
        c = kit_client_new(addr);
        kit_pass(c, RDMA_HDR_READ, 1, 1);
        kit_await_no_bodies();
    }
    kit_declined(kit_client_new("192.0.2.99"), RDMA_HDR_READ, 1, 1, "acquire",
                 RDMA_HDR_BUSY);
    kit_pass(c, RDMA_HDR_READ, 2, 1); /* nothing was closed for that */
    ck_assert_uint_eq(c->nconns, 1);
    fake_hold(NULL);
    kit_await_slots(1);
    kit_await_no_bodies();
    kit_pass(kit_client_new("192.0.2.98"), RDMA_HDR_READ, 1, 1);
}
END_TEST

/* The next one would fail, too, and take what httpd needs. */
START_TEST(want_of_resources_makes_a_pause)
{
    kit_client *c = kit_go_with_client();
    kit_client *other = kit_client_new("192.0.2.2");
    uint32_t id;

    kit_pass(other, RDMA_HDR_READ, 1, 1);
    fake_fail("eventfd", 1, EMFILE);
    kit_declined(c, RDMA_HDR_WRITE, 1, 1, "wait", RDMA_HDR_MEMORY);
    ck_assert(fake_failed());
    for (id = 2; id <= 4; id++) {
        kit_declined(c, RDMA_HDR_WRITE, id, 1, "acquire", RDMA_HDR_MEMORY);
        kit_declined(other, RDMA_HDR_WRITE, id, 1, "acquire", RDMA_HDR_MEMORY);
    }
    kit_pass(other, RDMA_HDR_READ, id, 1); /* it has its connection */
    ck_assert_uint_eq(kit.logged[53], 1);
    kit_end_pause();
    kit_pass(c, RDMA_HDR_WRITE, id, 1);
}
END_TEST

/* So many are free. */
static void leave_descriptors(rlim_t number)
{
    struct rlimit limit;
    int next = dup(0);

    ck_assert_int_ge(next, 64);
    close(next);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = (rlim_t)next + number;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* What is left is httpd's: nobody connects, and nobody takes any to find out. */
START_TEST(descriptors_run_out)
{
    kit_client *c = kit_go_with_client();
    int held[64];
    unsigned i;

    for (i = 0; i < 64; i++) {
        held[i] = dup(0);
    }
    leave_descriptors(30);
    kit_declined(c, RDMA_HDR_WRITE, 1, 1000, "wait", RDMA_HDR_MEMORY);
    kit_declined(c, RDMA_HDR_WRITE, 2, 1000, "acquire", RDMA_HDR_MEMORY);
    ck_assert_uint_eq(fake_connects(kit_client_port(c)), 0);
    leave_descriptors(40);
    kit_end_pause();
    kit_await_slots(0);
    kit_pass(c, RDMA_HDR_WRITE, 3, 1000);
    for (i = 0; i < 64; i++) {
        close(held[i]);
    }
}
END_TEST

/* ---- black holes ------------------------------------------------------- */

/* Clients that did not answer last time have one connect each, with whatever
 * endpoint they come; nobody waits for it but who has asked for it. */
START_TEST(suspects_have_one_connect)
{
    static const char *const holes[2] = {"192.0.2.1", "192.0.2.2"};
    kit_work w[2];
    unsigned i;

    kit.conf.connect_timeout = KIT_SECOND;
    kit_go();
    kit_fall_in(&w[0], holes[0]);
    kit_fall_in(&w[1], holes[1]);
    kit_join(&w[0]);
    kit_join(&w[1]);
    kit_await_slots(0);
    for (i = 0; i < 2; i++) {
        kit_fall_in(&w[i], holes[i]);
        kit_await_connect(w[i].client);
    }
    for (i = 0; i < 8; i++) {
        kit_declined(kit_client_new(holes[i % 2]), RDMA_HDR_WRITE, 1, 1000,
                     "acquire", RDMA_HDR_BUSY);
    }
    kit_pass(kit_client_new("192.0.2.3"), RDMA_HDR_WRITE, 1, 1000);
    kit_await_slots(3); /* the two hang all the while */
    for (i = 0; i < 2; i++) {
        kit_join(&w[i]);
        ck_assert_str_eq(w[i].step, "wait");
        ck_assert_int_eq(w[i].why, RDMA_HDR_CONNECT);
    }
    kit_await_slots(1);
    fake_route_to(kit_client_port(w[0].client), FAKE_NORMAL);
    kit_age_back_off(w[0].client, RDMA_HDR_WRITE);
    kit_pass(w[0].client, RDMA_HDR_WRITE, 2, 1000);
    kit_pass(kit_client_new(holes[0]), RDMA_HDR_WRITE, 1, 1000);
}
END_TEST

/* All of them together have half of the connectors. */
START_TEST(suspects_have_half_of_the_connectors)
{
    kit_work w[SUSPECTS + 1];
    char addr[sizeof(w) / sizeof(w[0])][16];
    unsigned i;

    kit.conf.connect_timeout = KIT_SECOND;
    kit_go();
    for (i = 0; i <= SUSPECTS; i++) {
        snprintf(addr[i], sizeof(addr[i]), "192.0.2.%u", i + 1);
        kit_fall_in(&w[i], addr[i]);
    }
    for (i = 0; i <= SUSPECTS; i++) {
        kit_join(&w[i]);
    }
    kit_await_slots(0);
    for (i = 0; i < SUSPECTS; i++) {
        kit_fall_in(&w[i], addr[i]);
        kit_await_connect(w[i].client);
    }
    kit_declined(kit_client_new(addr[i]), RDMA_HDR_WRITE, 1, 1000, "acquire",
                 RDMA_HDR_BUSY);
    for (i = 0; i < SUSPECTS; i++) {
        kit_join(&w[i]);
    }
}
END_TEST

/* Addresses that nobody knows, however many, leave connectors to those that have
 * answered before. */
START_TEST(strangers_leave_some_connectors)
{
    static const char *const strange[2] = {"192.0.2.1", "192.0.2.2"};
    kit_work w[8];
    unsigned i;

    kit.conf.connect_timeout = 60 * KIT_SECOND;
    kit_go();
    kit_pass(kit_client_new("192.0.2.3"), RDMA_HDR_WRITE, 1, 1000);
    for (i = 0; i < 8; i++) {
        kit_fall_in(&w[i], strange[i % 2]);
    }
    kit_await_slots(9);
    kit_pass(kit_client_new("192.0.2.3"), RDMA_HDR_WRITE, 1, 1000);
    kit_await_slots(10); /* they hang all the while */
    kit_stop();
    for (i = 0; i < 8; i++) {
        kit_join(&w[i]);
        ck_assert_str_eq(w[i].step, "wait");
    }
}
END_TEST

/* Whoever waits behind the connects of its own address gets its turn. */
START_TEST(queue_outlasts_a_connect)
{
    kit_work holes[4];
    unsigned i;

    kit.conf.connect_timeout = KIT_SECOND;
    kit_go();
    for (i = 0; i < 4; i++) {
        kit_fall_in(&holes[i], "192.0.2.1");
    }
    for (i = 0; i < 4; i++) {
        kit_await_connect(holes[i].client);
    }
    kit_pass(kit_client_new("192.0.2.1"), RDMA_HDR_WRITE, 1, 1000);
    for (i = 0; i < 4; i++) {
        kit_join(&holes[i]);
    }
}
END_TEST

START_TEST(back_off_doubles)
{
    const rdma_conn_time first = 10 * KIT_SECOND;
    const rdma_conn_time most = 300 * KIT_SECOND;
    rdma_conn_time expected = first;
    kit_client *c = kit_go_with_client();
    uint32_t id;

    kit_client_manner(c, KIT_REJECT);
    for (id = 1; id <= 8; id++) {
        rdma_conn_time left;

        kit_declined(c, RDMA_HDR_WRITE, id, 1, "wait", RDMA_HDR_CONNECT);
        left = kit_backed_off(c, RDMA_HDR_WRITE);
        ck_assert_int_le(left, expected);
        ck_assert_int_gt(left, expected - 5 * KIT_SECOND);
        expected = expected * 2 > most ? most : expected * 2;
        kit_age_back_off(c, RDMA_HDR_WRITE);
    }
    ck_assert_int_eq(expected, most);
    kit_client_manner(c, KIT_ACCEPT);
    kit_pass(c, RDMA_HDR_WRITE, id++, 1);
    kit_await_no_bodies();
    kit_disconnect(kit_client_conn(c, 0));
    kit_await_slots(0);
    kit_client_manner(c, KIT_REJECT);
    kit_declined(c, RDMA_HDR_WRITE, id, 1, "wait", RDMA_HDR_CONNECT);
    ck_assert_int_le(kit_backed_off(c, RDMA_HDR_WRITE), first);
}
END_TEST

/* ---- devices ----------------------------------------------------------- */

/* Who connects over the device hears that it goes. */
START_TEST(device_leaves_during_a_connect)
{
    kit_client *c = kit_go_with_client();
    kit_work w = kit_request(c, RDMA_HDR_WRITE, 1, 1);

    kit_client_manner(c, KIT_HOLD);
    kit_run(&w, kit_serve_thread);
    kit_await_requests(c, 1);
    fake_remove_device();
    kit_join(&w);
    ck_assert_str_eq(w.step, "wait");
    ck_assert_int_eq(w.why, RDMA_HDR_DEVICE);
    kit_await_no_devices();
    kit_client_manner(c, KIT_ACCEPT);
}
END_TEST

/* A device that nobody uses any more. */
static void leave_idle_device(void)
{
    kit_client *c;

    kit.conf.idle_timeout = 10 * KIT_MS;
    c = kit_go_with_client();
    kit_pass(c, RDMA_HDR_WRITE, 1, 1);
    kit_await_slots(0);
}

static void is_let_go_of(void *unused)
{
    (void)unused;
    ck_assert(fake_is_let_go_of());
}

/* It is watched although our end of the connect had the wildcard for address; and
 * its descriptors are used as long as the watch keeps it. */
START_TEST(device_leaves_when_idle)
{
    leave_idle_device();
    fake_meet("rdma_destroy_id", 1, 0, is_let_go_of, NULL); /* the watch */
    fake_remove_device();
    kit_await_no_devices();
    ck_assert(fake_failed());
}
END_TEST

static struct {
    int fds[256];
    unsigned n;
} hoard;

static void use_up_descriptors(void *unused)
{
    int fd;

    (void)unused;
    while ((fd = dup(0)) >= 0) {
        hoard.fds[hoard.n++] = fd;
    }
}

/* Nor does that need a descriptor: whatever is given back, others take. */
START_TEST(device_leaves_when_descriptors_are_out)
{
    struct rlimit before, few;

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    few = before;
    few.rlim_cur = sizeof(hoard.fds) / sizeof(hoard.fds[0]);
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    leave_idle_device();
    use_up_descriptors(NULL);
    fake_meet("ibv_destroy_comp_channel", 1, 0, use_up_descriptors, NULL);
    fake_remove_device();
    kit_await_no_devices();
    ck_assert(fake_failed() && fake_is_let_go_of());
    while (hoard.n > 0) {
        close(hoard.fds[--hoard.n]);
    }
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
}
END_TEST

/* Until the progress thread has its event, and waits. */
static void remove_device(void *unused)
{
    (void)unused;
    fake_remove_device();
    usleep(100 * 1000);
}

/* A watch is given up while somebody is about to acknowledge its event. */
START_TEST(device_leaves_while_it_is_met)
{
    kit_client *c = kit_go_with_client();

    fake_meet("ibv_create_comp_channel", 1, EMFILE, remove_device, NULL);
    kit_declined(c, RDMA_HDR_READ, 1, 1, "wait", RDMA_HDR_MEMORY);
    ck_assert(fake_failed());
    kit_end_pause();
    kit_pass(c, RDMA_HDR_READ, 2, 1);
}
END_TEST

/* It is no want of resources, which would make others wait. */
START_TEST(device_has_left_when_it_is_used)
{
    static const int errors[] = {ENODEV, EIO, EBADF};
    kit_client *c = kit_go_with_client();

    fake_fail("rdma_create_qp", 1, errors[_i]);
    kit_declined(c, RDMA_HDR_READ, 1, 1, "wait", RDMA_HDR_DEVICE);
    ck_assert(fake_failed());
    kit_pass(kit_client_new("192.0.2.2"), RDMA_HDR_READ, 1, 1);
}
END_TEST

/* All ports were taken for a moment: without a watch the device is not used. */
START_TEST(device_is_not_used_unwatched)
{
    kit_client *c = kit_go_with_client();

    fake_fail("rdma_bind_addr", 1, ENOMEM);
    kit_declined(c, RDMA_HDR_WRITE, 1, 1, "wait", RDMA_HDR_MEMORY);
    ck_assert(fake_failed());
    kit_await_no_devices();
    kit_end_pause();
    kit_pass(c, RDMA_HDR_WRITE, 2, 1);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "memory");

    tcase_add_test(t, arenas_of_one_address);
    tcase_add_test(t, blocks_of_one_address);
    tcase_add_test(t, arenas_are_not_huge);
    tcase_add_test(t, many_of_one_address);
    tcase_add_loop_test(t, nothing_is_registered_on_the_way, 0, 2);
    tcase_add_loop_test(t, no_other_thread_is_needed, 0, 2);
    tcase_add_test(t, pool_that_is_not_there_is_said_once);
    tcase_add_test(t, pool_is_registered_unlocked);
    t = kit_group(s, "connections");
    tcase_add_test(t, busy_connection_is_slow_to_answer);
    tcase_add_test(t, clients_that_take_nothing_hold_half_of_the_workers);
    tcase_add_test(t, silent_connection_is_asked_once);
    tcase_add_test(t, deep_client_says_nothing);
    tcase_add_test(t, prepared_connection);
    tcase_add_test(t, evicted_faster_than_taken_apart);
    tcase_add_test(t, want_of_resources_makes_a_pause);
    tcase_add_test(t, descriptors_run_out);
    t = kit_group(s, "black holes");
    tcase_add_test(t, suspects_have_one_connect);
    tcase_add_test(t, suspects_have_half_of_the_connectors);
    tcase_add_test(t, strangers_leave_some_connectors);
    tcase_add_test(t, queue_outlasts_a_connect);
    tcase_add_test(t, back_off_doubles);
    t = kit_group(s, "devices");
    tcase_add_test(t, device_leaves_during_a_connect);
    tcase_add_test(t, device_leaves_when_idle);
    tcase_add_test(t, device_leaves_when_descriptors_are_out);
    tcase_add_test(t, device_leaves_while_it_is_met);
    tcase_add_loop_test(t, device_has_left_when_it_is_used, 0, 3);
    tcase_add_test(t, device_is_not_used_unwatched);
}

int main(void)
{
    return common_main("engine, limits", add);
}
