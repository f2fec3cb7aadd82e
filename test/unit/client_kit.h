/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of the client's endpoint have in common, over a device that is
 * not there: the endpoint, the application that takes bodies from it, and a
 * server, which is a connection by rdma_conn_connect() that says what the test
 * wants.
 */
#ifndef CLIENT_KIT_H
#define CLIENT_KIT_H

#include <check.h>

#include "common.h"
#include "fake.h"
#include "../../client/endpoint_private.h"

#define LIB_SECOND  ((rdma_conn_time)1000000)
#define LIB_PATIENT (20 * LIB_SECOND) /* a test that waits so long has failed */
#define LIB_SERVERS 4
#define LIB_BODY    ((size_t)100000)

typedef struct lib_server {
    rdma_conn *conn;
    rdma_mem *mem;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct rdma_event_channel *events;
    rdma_mem_region body;
    pthread_t thread;
    int wake_fd;
    int has_thread;
    int quit;
    int deaf;         /* reads nothing that comes */
    const char *from; /* its address; NULL: the one that is expected */
    uint8_t twist;    /* what is wrong with the token that it says */
    rdma_conn_failure why;
} lib_server;

/* Of the running test. conf may be changed before lib_go(). */
extern struct lib {
    rdmahttp_conf conf;
    rdmahttp_endpoint *ep;
    lib_server servers[LIB_SERVERS];
    unsigned wakes; /* that the application had */
} lib;

/* Tests with these fixtures: they end with nothing left of the device's. */
TCase *lib_group(Suite *s, const char *name);
/* What each test begins and ends with, for one that has several lives. */
void lib_setup(void);
void lib_teardown(void);

/* As rdmahttp_endpoint_open(), which expects the servers then. */
int lib_open(char *why);
void lib_go(void); /* and it does not fail */

/* ---- the server -------------------------------------------------------- */

/* Connects to the endpoint, and answers each ABORT. 0, or -1 with s->why. */
int lib_dial(lib_server *s, rdma_hdr_kind kind);
void lib_hang_up(lib_server *s);
void lib_server_free(lib_server *s);
/* If the connection has ended, nothing. */
void lib_say(lib_server *s, rdma_hdr_type type, uint32_t id, uint64_t bytes,
             unsigned flags);
/* n bytes of the body into the window of t, and what the client has to be told
 * of that. The same. */
void lib_write_body(lib_server *s, const rdmahttp_transfer *t, size_t n,
                    unsigned flags);

/* ---- the application --------------------------------------------------- */

void lib_on_wake(void *baton);
/* Compares the bytes with the body; the baton is a size_t: where it is. */
int lib_sink(void *baton, const void *bytes, size_t n);
void lib_expect_awake(unsigned before);
/* Take what comes, asleep while nothing does. How it ended, and *n bytes. */
rdmahttp_taken lib_take_all(rdmahttp_transfer *t, size_t *n);
/* The same up to so many bytes or more: RDMAHTTP_TAKE_MORE. */
rdmahttp_taken lib_take_some(rdmahttp_transfer *t, size_t most, size_t *n);
/* The head of a response by server-write that names this connection: W2, or W1
 * if total is not 0. As rdmahttp_endpoint_head(). */
int lib_head(rdmahttp_transfer *t, uint32_t conn, uint64_t total);
/* The same by client-read, R1: the server's body lies there. */
int lib_read_head(rdmahttp_transfer *t, const lib_server *s);

/* ---- waiting for what nobody signals ----------------------------------- */

void lib_await(int (*test)(void), const char *what);
unsigned lib_count_peers(void);
int lib_no_peer(void);
int lib_is_open(void); /* the newest connection */

#endif /* CLIENT_KIT_H */
