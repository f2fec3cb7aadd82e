/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The inside of a body, for the files that share it: rdma_body.c (states, last
 * words, leases), rdma_body_write.c (blocks and WRITEs) and rdma_body_read.c
 * (parts and OFFERs). Nobody else includes this.
 */
#ifndef RDMA_BODY_PRIVATE_H
#define RDMA_BODY_PRIVATE_H

#include "rdma_arenas.h"
#include "rdma_body.h"

#define RDMA_BODY_BLOCKS 4 /* of one body: filling overlaps with moving */
#define RDMA_BODY_PARTS  2 /* of a stream: the same for the read kind */

typedef enum body_state { RESERVED, ACTIVE, SAID, CLOSED } body_state;

typedef struct body_block {
    rdma_conn_wr wr;
    rdma_body *body;
    char *base; /* NULL: not ours any more */
    int busy;   /* the device has it */
} body_block;

typedef struct body_part {
    rdma_arenas_part at;
    uint64_t end; /* body offset behind what was last announced in it */
    size_t shown; /* bytes of it that the client has been offered last, or all
                   * before the first time: what may lie there of others */
} body_part;

/* What differs between the kinds. All but space and commit are called [locked];
 * results as in rdma_body.h. */
typedef struct body_kind {
    rdma_hdr_declined (*reserve)(rdma_body *b, const rdma_hdr_request *req);
    char *(*space)(rdma_body *b, size_t *room); /* takes the lock itself */
    int (*commit)(rdma_body *b);                /* takes the lock itself */
    int (*flush)(rdma_body *b);
    int (*stream)(rdma_body *b);
    int (*holds_worker)(const rdma_body *b); /* when it is no stream */
    int (*finish)(rdma_body *b);
    void (*describe)(const rdma_body *b, rdma_hdr_response *head);
    void (*head_out)(rdma_body *b);  /* the head has been made */
    void (*give_back)(rdma_body *b); /* all memory that the device has not */
} body_kind;

extern const body_kind rdma_body_write_kind;
extern const body_kind rdma_body_read_kind;

struct rdma_body {
    rdma_body *next, *prev; /* the set's */
    rdma_body_set *set;
    const body_kind *kind;
    uint32_t id;
    uint64_t total; /* bytes of the body, or RDMA_BODY_UNKNOWN */

    /* the worker's */
    uint64_t committed; /* bytes that it has delivered */
    size_t filled;      /* of them in the current block or part */
    size_t lent; /* of that one: what it may have filled, until announced */
    unsigned current;
    int thrifty;  /* memory is short: less will do */
    int streamed; /* through a ring or a chain, the head goes first */
    int head_due; /* a stream has come to the point where its head must go */
    int head_out;

    /* under the connection's lock */
    body_state state;
    int worker;         /* a worker has a pointer to us */
    int aborted;        /* our last word is ABORT */
    int peer_said;      /* the client's last word has come */
    unsigned flying;    /* work requests that the device has */
    uint64_t announced; /* bytes that the client may take */
    uint64_t consumed;
    uint64_t renewed; /* what was consumed when the lease was renewed */
    int spoken_of;    /* something was, or may have been, posted for it */
    rdma_conn_time deadline; /* SAID: for the client's last word */
    int revoked;             /* the deadline has passed once */
    uint64_t behind; /* bytes of the connection that go before our ABORT */
    uint64_t moved;  /* what had gone when the deadline was set */
    int leased;      /* the client has memory of ours */
    int taken;       /* CONSUMED fin has come */

    /* write kind */
    uint32_t stag;
    uint64_t to;
    uint64_t window;  /* bytes */
    size_t block_len; /* bytes used of each block */
    unsigned nblocks;
    body_block blocks[RDMA_BODY_BLOCKS];
    rdma_conn_wr sent; /* WRITTEN(fin) */
    int sent_state;    /* 0 on its way, 1 has gone, -1 failed */

    /* read kind; nparts 1: the whole body lies in one */
    unsigned nparts;
    body_part parts[RDMA_BODY_PARTS];
};

struct rdma_body_set {
    rdma_conn *conn;
    rdma_body_conf conf;
    rdma_arenas *arenas; /* read kind */
    rdma_body *bodies;
    unsigned live;
    rdma_conn_time ended; /* the last id so far */
};

/* [locked] The only place where the state changes. */
void rdma_body_transit(rdma_body *b, body_state to, const char *why);
/* [locked] Our last word has been said. */
void rdma_body_said(rdma_body *b, const char *why);
/* [locked] Free a body that nobody needs any more. */
void rdma_body_settle(rdma_body *b);
/* Neither the connection nor the client has ended it. */
int rdma_body_alive(const rdma_body *b);
rdma_conn_time rdma_body_progress_deadline(const rdma_body *b);
/* [locked] As rdma_conn_wait(), for as long as the connection's WRITEs get on
 * within every RdmaTimeout; EBUSY: too many workers wait. */
int rdma_body_wait(rdma_body *b, int (*test)(void *arg), void *arg);
/* [locked] Wait until the client has consumed so many bytes; it has to advance
 * within every RdmaTimeout. 0 or -1. */
int rdma_body_await_consumed(rdma_body *b, uint64_t bytes);

#endif /* RDMA_BODY_PRIVATE_H */
