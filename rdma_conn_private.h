/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a connection, for the two files that share it: rdma_conn.c (the
 * life of a connection that is up) and rdma_connect.c (making one, either end,
 * and taking it apart). Nobody else includes this.
 */
#ifndef RDMA_CONN_PRIVATE_H
#define RDMA_CONN_PRIVATE_H

#include <pthread.h>

#include "rdma_conn.h"
#include "rdma_credit.h"

#define RDMA_CONN_RECV_SLOT 64  /* bytes: a SEND that is too long shows it */
#define RDMA_CONN_QUEUE     512 /* messages, together with CONTROL */
#define RDMA_CONN_CONTROL   8   /* PINGs and PONGs among them */

/* A message slot: its bytes lie in the registered page. */
typedef struct rdma_conn_slot {
    rdma_conn_wr wr;
    rdma_conn_wr *sent; /* the caller's, or NULL */
    struct rdma_conn_slot *next_free;
    unsigned char *bytes;
} rdma_conn_slot;

typedef struct rdma_conn_queued {
    rdma_hdr_msg msg;
    rdma_conn_wr *sent;
} rdma_conn_queued;

struct rdma_conn {
    pthread_mutex_t lock;
    pthread_cond_t cond; /* followers in rdma_conn_wait */
    int leader;          /* somebody sleeps on send_channel */

    /* constant after making */
    rdma_hdr_kind kind;
    int active; /* we are the server */
    uint32_t number;
    rdma_mem *mem;
    const rdma_conn_handler *handler;
    void *baton;
    char name[80];
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    int own_pd;
    rdma_conn_time domain_took; /* to make, or to wait for */
    int hang_up_later;
    struct ibv_cq *recv_cq;
    struct ibv_cq *send_cq;
    struct ibv_comp_channel *send_channel; /* NULL: the owner's is shared */
    int wake_fd;
    unsigned depth;
    unsigned reads; /* READs in flight at most: initiator depth */
    unsigned nslots;
    rdma_mem_region region;
    rdma_conn_slot *slots;

    /* under the lock */
    rdma_conn_state state;
    rdma_conn_cause cause;
    int closing;
    int connected; /* accept or connect has gone out: say goodbye */
    rdma_credit credit;
    rdma_conn_time heard;
    int has_spoken;
    int pong_due; /* PING has come */
    rdma_conn_slot *free_slots;
    unsigned ndata;
    unsigned nreads;
    uint64_t posted, moved; /* bytes of data */
    rdma_conn_wr inflight;  /* ring of what the device has */
    unsigned qhead, qlen;
    rdma_conn_queued queue[RDMA_CONN_QUEUE];
};

/* [locked] The only place where the state changes; why counts when CLOSED. */
void rdma_conn_transit(rdma_conn *c, rdma_conn_state to, rdma_conn_cause why);

/* Post receive slot i. 0 or an errno. */
int rdma_conn_post_receive(rdma_conn *c, unsigned i);

/* [locked] done(ok 0) for all that the device still has: its QP is gone. */
void rdma_conn_drop_inflight(rdma_conn *c);

#endif /* RDMA_CONN_PRIVATE_H */
