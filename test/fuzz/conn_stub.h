/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * conn_stub: a device, a clock and threads for fuzzing connections, all of them
 * on the fuzzer's one thread: nothing happens but what the input says. What may
 * not be done to a real device is a finding.
 *
 * The code under test is compiled with the C library's calls that wait replaced
 * by those below (Makefile.apxs). Who would sleep calls conn_sleep, in which the
 * rest of the world goes on.
 */
#ifndef CONN_STUB_H
#define CONN_STUB_H

#include <poll.h>
#include <pthread.h>
#include <time.h>

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "fuzz.h"

/* ---- the input --------------------------------------------------------- */

void conn_input(const uint8_t *data, size_t size);
size_t conn_left(void);
uint8_t conn_byte(void);           /* 0 when there is none left */
uint64_t conn_size(uint64_t most); /* from 0 to most, small ones and large */
void conn_bytes(void *to, size_t n);

/* ---- time and sleep ---------------------------------------------------- */

extern int64_t conn_clock; /* microseconds */
/* Let others act; returns when the sleeper may look again, at the latest after
 * so many microseconds. Set by the harness. */
extern void (*conn_sleep)(int64_t us);

int conn_clock_gettime(clockid_t which, struct timespec *ts);
int conn_poll(struct pollfd *fds, nfds_t n, int ms);
int conn_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts,
               const sigset_t *mask);
int conn_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *lock,
                        const struct timespec *ts);
int conn_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
                        void *(*start)(void *), void *baton);
int conn_pthread_join(pthread_t thread, void **result);
ssize_t conn_getrandom(void *buf, size_t n, unsigned flags);
void *conn_calloc(size_t n, size_t size);

/* The thread that was to be started. */
extern void *(*conn_thread)(void *baton);
extern void *conn_thread_baton;

/* ---- the device -------------------------------------------------------- */

#define CONN_SENDS 256
#define CONN_RECVS 64
#define CONN_DATA  64 /* bytes of private data, at most */

typedef struct conn_wr {
    uint64_t wr_id;
    enum ibv_wr_opcode opcode;
    char *local;
    uint32_t len, lkey;
    uint64_t to;
    uint32_t rkey;
    int refused; /* its post failed: the harness has not heard of it */
} conn_wr;

typedef struct conn_id {
    struct rdma_cm_id id; /* first: one is the other */
    struct conn_id *next;
    struct sockaddr_storage addr;
    unsigned unacked;
    unsigned depth; /* of who connects */
} conn_id;

typedef struct conn_qp {
    struct ibv_qp qp;
    conn_id *id;
    unsigned reads, max_reads;
    unsigned head, n; /* of sends, oldest first */
    conn_wr sends[CONN_SENDS];
    unsigned rhead, nrecv, max_recv;
    struct {
        uint64_t wr_id;
        char *base;
        uint32_t len;
    } recv[CONN_RECVS];
} conn_qp;

extern unsigned conn_objects; /* that are open */
/* The harness judges every post, and hears of completions, of the end of a QP
 * (nothing arrives any more), and of rdma_accept(). May be NULL but the first. */
extern void (*conn_posted)(conn_qp *q, const conn_wr *w);
extern void (*conn_completed)(conn_qp *q, const conn_wr *w, int ok);
extern void (*conn_gone)(conn_qp *q);
extern void (*conn_accepted)(conn_qp *q, const void *data, size_t len);
/* What rdma_connect() is answered with: an event, and private data. */
extern enum rdma_cm_event_type conn_answer;
extern uint8_t conn_answer_data[CONN_DATA];
extern uint8_t conn_answer_len;

conn_qp *conn_qp_of(const struct rdma_cm_id *id);
/* A connect request at whoever listens. */
void conn_request(const void *data, uint8_t len, unsigned initiator_depth);
/* A SEND of the peer arrives. */
void conn_deliver(conn_qp *q, const void *bytes, uint32_t len);
/* The oldest n sends complete: as they should, or, if the QP is in error, as
 * flushed. */
void conn_complete(conn_qp *q, unsigned n);
/* The oldest send fails, and the QP with it. */
void conn_fail_send(conn_qp *q);
/* The connection is lost; tell: an event says so; flush: receives complete. */
void conn_break(conn_qp *q, int tell, int flush);
void conn_event_for(struct rdma_cm_id *id, enum rdma_cm_event_type type);
int conn_in_flight(const conn_qp *q, const char *base, size_t len);

/* The n-th call (1 and up) from now on fails. */
enum {
    CONN_FAIL_SEND,
    CONN_FAIL_RECV,
    CONN_FAIL_MR,
    CONN_FAIL_CALLOC,
    CONN_FAIL_NOTIFY,
    CONN_FAIL_ACCEPT,
    CONN_FAILS
};
void conn_fail(unsigned what, unsigned nth);
/* Posts that fail are flushed later on: they were queued before the doorbell. */
extern int conn_keeps_refused;
/* A call has failed: what else may happen is another matter. */
extern int conn_has_failed;
/* 0, or the errno with which this call is to fail. */
int conn_trip(unsigned what);
void conn_calls_reset(void);
/* As when the process begins; the objects of the last input are no more. */
void conn_reset(void);

/* ---- the harnesses ----------------------------------------------------- */

void conn_fuzz_server(void);
void conn_fuzz_client(void);

#endif /* CONN_STUB_H */
