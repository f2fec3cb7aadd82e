/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The inside of the fake, for its own files: fake.c (what tests call), fake_wire.c
 * (the thread), fake_verbs.c and fake_cm.c (the two libraries).
 *
 * One lock for everything. Structs of the libraries are the first members of
 * ours, so that a pointer to one is a pointer to the other.
 */
#ifndef FAKE_PRIVATE_H
#define FAKE_PRIVATE_H

#include <pthread.h>

#include "fake.h"

#define FAKE_DATA 256 /* bytes: the most that private data is padded to */

typedef struct fake_pd {
    struct ibv_pd pd;
    unsigned users; /* MRs and QPs */
    unsigned kept;  /* of these: MRs that could not be deregistered */
} fake_pd;

typedef struct fake_mr {
    struct ibv_mr mr;
    struct fake_mr *next;
    unsigned access;
    int kept;
} fake_mr;

typedef struct fake_cq {
    struct ibv_cq cq;
    struct fake_cq *next; /* on its channel */
    unsigned pending;     /* events that nobody has read */
    unsigned read, acked; /* events */
    unsigned users;       /* QPs */
    int armed;
    int broken; /* polling it fails, from now on */
    unsigned head, n, size;
    struct ibv_wc *ring;
} fake_cq;

typedef struct fake_comp {
    struct ibv_comp_channel channel; /* refcnt: CQs */
    fake_cq *first;                  /* with events */
} fake_comp;

/* A send work request on its way: sent (its bytes were taken), landed (they are
 * at the other end), done (status is known), completed (has its CQE). */
typedef struct fake_wr {
    struct fake_wr *next;
    uint64_t wr_id;
    enum ibv_wr_opcode opcode;
    char *local;
    uint32_t len, lkey;
    uint64_t to;
    uint32_t rkey;
    int signaled;
    int refused; /* the post has failed: it is flushed with the QP, no more */
    char *copy;
    int sent, landed, done, completed;
    enum ibv_wc_status status;
} fake_wr;

typedef struct fake_receive {
    uint64_t wr_id;
    char *base;
    uint32_t len, lkey;
} fake_receive;

typedef struct fake_id fake_id;

typedef struct fake_qp {
    struct ibv_qp qp;
    struct fake_qp *next;
    fake_id *id;
    fake_wr *first; /* send queue, oldest first */
    unsigned nsend, max_send;
    unsigned rhead, nrecv, max_recv;
    fake_receive *recv;
    int dead_posts; /* in error: 0 fail, 1 flushed, 2 never complete, 3 fail and
                     * are flushed all the same */
} fake_qp;

typedef struct fake_event {
    struct rdma_cm_event event;
    struct fake_event *next;
    fake_id *owner; /* who counts it; gets it on its channel */
    int is_connect; /* the wire makes a CONNECT_REQUEST of it */
    unsigned char data[FAKE_DATA];
} fake_event;

typedef struct fake_events {
    struct rdma_event_channel channel;
    fake_event *first; /* that can be read */
    unsigned ids;
} fake_events;

typedef enum fake_cm_state {
    CM_IDLE,
    CM_RESOLVED,
    CM_LISTENING,
    CM_CONNECTING, /* active: rdma_connect() was called */
    CM_REQUESTED,  /* passive: not answered yet */
    CM_CONNECTED,
    CM_OVER
} fake_cm_state;

struct fake_id {
    struct rdma_cm_id id;
    fake_id *next;
    fake_cm_state state;
    fake_id *peer;    /* CONNECTING, REQUESTED, CONNECTED: the other end */
    unsigned unacked; /* events that were read */
    int frozen, thaw_at_arm;
    unsigned lands; /* frozen: so many do all the same */
    unsigned reads; /* READs in flight that it may have */
    struct rdma_conn_param param;
    unsigned char data[FAKE_DATA];
};

typedef struct fake_world {
    pthread_mutex_t lock;
    pthread_cond_t work;  /* for the wire */
    pthread_cond_t acked; /* an event was */
    pthread_t wire;
    pthread_cond_t settled;
    int running, quit;
    int idle; /* the wire has found nothing to do, and nothing was added */
    uint64_t rng;
    int like_rxe;
    int refuse_dead_posts;
    fake_mr *mrs;
    fake_qp *qps;
    fake_id *ids;
    fake_event *coming; /* not on a channel yet, oldest first */
    unsigned pds, nmrs, cqs, comps, nqps, nids, channels;
    size_t registered, memlock;
    uint32_t number; /* of QPs */
    uint16_t port;
} fake_world;

extern fake_world fake;
#define FAKE_ADDR 0xc00002feu /* 192.0.2.254: of the device */
extern struct ibv_context fake_context;

void fake_lock(void);
void fake_unlock(void);
/* [locked] There is work for the wire. */
void fake_work(void);
/* [locked] */
unsigned fake_random(unsigned below);
/* A misuse that a real device answers with a hang, a leak or worse. */
void fake_fault(const char *fmt, ...)
    __attribute__((format(printf, 1, 2), noreturn));
/* 0, or the errno with which this call is to fail. Not locked. */
int fake_trip(const char *function);
/* [locked] Wait for acks. 0, or -1: they do not come. */
int fake_wait_acked(void);
/* A descriptor that is readable (on) or not; blocking or not is its user's. */
int fake_fd_make(void);
void fake_fd_set(int fd, int on);
/* 1: readable by now; 0: not, and it is a non-blocking one. Not locked. */
int fake_fd_wait(int fd);
fake_route fake_route_of(uint16_t port, int count);

/* [locked] fake_verbs.c */
void fake_complete(struct ibv_cq *cq, const struct ibv_wc *wc);
/* Memory of this PD with these rights, or NULL. */
const fake_mr *fake_find_mr(const struct ibv_pd *pd, uint32_t key,
                            uint64_t base, uint64_t len, unsigned access);
fake_qp *fake_qp_make(fake_id *id, struct ibv_pd *pd,
                      const struct ibv_qp_init_attr *attr);
void fake_qp_free(fake_qp *q);

/* [locked] fake_cm.c */
/* An event for this id, some time. */
void fake_event_for(fake_id *id, enum rdma_cm_event_type type, int status,
                    const void *data, size_t len, size_t padded);
/* Put a coming event (unlinked) where it can be read. */
void fake_event_deliver(fake_event *e);
/* End a connection. What `from` has on its way may still land. */
void fake_cut(fake_id *from, int tell_from, int tell_peer);

/* [locked] fake_wire.c */
/* Let what is on its way from q land. */
void fake_land_all(fake_qp *q);
/* Do all that leads to completions on this CQ. */
void fake_hurry(const struct ibv_cq *cq);
/* The CQ is about to be armed: see fake_thaw_at_arm(). */
void fake_thaw(const struct ibv_cq *cq);
void *fake_wire_main(void *arg);

#endif /* FAKE_PRIVATE_H */
