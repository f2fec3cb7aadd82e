/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * Whom the engine knows: what makes an endpoint, and how many are remembered.
 */
#include "kit.h"

#include <arpa/inet.h>
#include <string.h>

#include "../../rdma_cache_private.h"

#define MOST RDMA_CACHE_ENDPOINTS

/* Only one connection is allowed, and that is in use: who asks for another one is
 * remembered, and nobody connects. */
static kit_work nobody_connects(kit_client *c)
{
    kit_work w = kit_lease(c, RDMA_HDR_READ, 1, 1000);
    rdma_cache_target t = kit_target(c, RDMA_HDR_WRITE);
    rdma_hdr_declined why;

    ck_assert_ptr_null(rdma_cache_acquire(kit.cache, &t, &why));
    ck_assert_int_eq(why, RDMA_HDR_BUSY);
    return w;
}

typedef struct known {
    unsigned endpoints, clients;
} known;

static known how_many(void)
{
    rdma_cache *cache = kit.cache;
    known n;

    pthread_mutex_lock(&cache->lock);
    n.endpoints = cache->nendpoints;
    n.clients = apr_hash_count(cache->clients);
    ck_assert_uint_eq(apr_hash_count(cache->endpoints), n.endpoints);
    pthread_mutex_unlock(&cache->lock);
    return n;
}

/* ---- names ------------------------------------------------------------- */

static rdma_cache_target at6(const char *addr, uint32_t scope, uint16_t port,
                             uint8_t token)
{
    rdma_cache_target t = {.kind = RDMA_HDR_READ};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6,
                               .sin6_port = htons(port),
                               .sin6_scope_id = scope};

    ck_assert_int_eq(inet_pton(AF_INET6, addr, &in6.sin6_addr), 1);
    memcpy(&t.remote, &in6, sizeof(in6));
    memset(t.token, token, sizeof(t.token));
    return t;
}

/* How many endpoints and clients more this makes. */
static known asks(rdma_cache_target t)
{
    known before = how_many();
    known after;

    rdma_cache_prepare(kit.cache, &t);
    after = how_many();
    return (known){after.endpoints - before.endpoints,
                   after.clients - before.clients};
}

#define ck_assert_new(target, nendpoints, nclients)                            \
    do {                                                                       \
        known more = asks(target);                                             \
        ck_assert_uint_eq(more.endpoints, nendpoints);                         \
        ck_assert_uint_eq(more.clients, nclients);                             \
    } while (0)

/* The name is all of address, port and token; limits are the address's. (IPv4, with
 * connections: an_endpoint_is_address_port_and_token.) */
START_TEST(names_in_ipv6)
{
    rdma_cache_target other;
    kit_client *c;
    kit_work w;

    kit.conf.max_connections = 1;
    c = kit_go_with_client();
    w = nobody_connects(c);
    ck_assert_new(at6("2001:db8::1", 0, 5000, 1), 1, 1);
    ck_assert_new(at6("2001:db8::1", 0, 5000, 1), 0, 0);
    ck_assert_new(at6("2001:db8::1", 0, 5001, 1), 1, 0);
    ck_assert_new(at6("2001:db8::1", 0, 5000, 2), 1, 0);
    ck_assert_new(at6("2001:db8::2", 0, 5000, 1), 1, 1);
    ck_assert_new(at6("2001:db9::1", 0, 5000, 1), 1, 1);
    ck_assert_new(at6("fe80::1", 1, 5000, 1), 1, 1);
    ck_assert_new(at6("fe80::1", 2, 5000, 1), 1, 1);
    /* What IPv6 has beside these is no part of the name. */
    other = at6("2001:db8::1", 0, 5000, 1);
    ((struct sockaddr_in6 *)&other.remote)->sin6_flowinfo = 7;
    ck_assert_new(other, 0, 0);
    kit_take(&w);
}
END_TEST

/* The same bytes are not the same address. */
START_TEST(names_in_ipv4_are_others)
{
    rdma_cache_target four;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(5000)};
    kit_client *c;
    kit_work w;

    kit.conf.max_connections = 1;
    c = kit_go_with_client();
    w = nobody_connects(c);
    four = at6("102:304::", 0, 5000, 1);
    ck_assert_new(four, 1, 1);
    inet_pton(AF_INET, "1.2.3.4", &in.sin_addr);
    memset(&four.remote, 0, sizeof(four.remote));
    memcpy(&four.remote, &in, sizeof(in));
    ck_assert_new(four, 1, 1);
    ck_assert_new(four, 0, 0);
    kit_take(&w);
}
END_TEST

/* ---- how many ---------------------------------------------------------- */

/* This many strangers ask, each from an address of its own. */
static void strangers(unsigned first, unsigned n)
{
    rdma_cache_target t = {.kind = RDMA_HDR_WRITE};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(5000)};
    unsigned i;

    for (i = first; i < first + n; i++) {
        in.sin_addr.s_addr = htonl(0x0a000000 + i);
        memcpy(&t.remote, &in, sizeof(in));
        rdma_cache_prepare(kit.cache, &t);
    }
}

/* Bytes, or 0: nobody has counted. */
extern size_t __sanitizer_get_current_allocated_bytes(void)
    __attribute__((weak));

static size_t heap(void)
{
    return __sanitizer_get_current_allocated_bytes
               ? __sanitizer_get_current_allocated_bytes()
               : 0;
}

static kit_client *unreachable(const char *addr)
{
    kit_client *c = kit_client_new(addr);

    kit_client_manner(c, KIT_REJECT);
    kit_declined(c, RDMA_HDR_WRITE, 1, 1, "wait", RDMA_HDR_CONNECT);
    kit_await_slots(0);
    return c;
}

/* Whoever was heard of least recently makes room; who has a connection stays. */
START_TEST(the_least_recently_used_makes_room)
{
    kit_client *c;
    kit_client *seen;
    kit_client *unseen;
    kit_work w;
    size_t bytes;

    kit.conf.max_connections = 1;
    kit.conf.lease_timeout = KIT_PATIENT;
    c = kit_go_with_client();
    seen = unreachable("192.0.2.2");
    unseen = unreachable("192.0.2.3");
    w = nobody_connects(c);
    strangers(0, MOST - 3);
    ck_assert_uint_eq(how_many().endpoints, MOST);
    /* It is known that this one cannot be reached, and this is to hear of it. */
    kit_declined(seen, RDMA_HDR_WRITE, 2, 1, "acquire", RDMA_HDR_CONNECT);
    strangers(MOST, MOST / 2);
    ck_assert_uint_eq(how_many().endpoints, MOST);
    ck_assert_uint_eq(how_many().clients, MOST);
    kit_declined(seen, RDMA_HDR_WRITE, 3, 1, "acquire", RDMA_HDR_CONNECT);
    kit_declined(unseen, RDMA_HDR_WRITE, 2, 1, "acquire", RDMA_HDR_BUSY);
    bytes = heap();
    strangers(2 * MOST, 2 * MOST);
    ck_assert_uint_lt(heap(), bytes + 64 * 1024); /* of others, in passing */
    ck_assert_uint_eq(how_many().endpoints, MOST);
    ck_assert_uint_eq(how_many().clients, MOST);
    kit_declined(seen, RDMA_HDR_WRITE, 4, 1, "acquire", RDMA_HDR_BUSY);
    kit_take(&w);
    w = kit_request(c, RDMA_HDR_READ, 1, 1000);
    ck_assert_int_eq(kit_serve(&w), -1);
    ck_assert_str_eq(w.step, "use_id"); /* that it has run is not forgotten */
    kit_pass(c, RDMA_HDR_READ, 2, 1000);
    ck_assert_uint_eq(c->nconns, 1);
}
END_TEST

static void add(Suite *s)
{
    TCase *t = kit_group(s, "endpoints");

    tcase_add_test(t, names_in_ipv6);
    tcase_add_test(t, names_in_ipv4_are_others);
    tcase_add_test(t, the_least_recently_used_makes_room);
}

int main(void)
{
    return common_main("engine, endpoints", add);
}
