/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* The client: endpoints, their connections, windows and requests. */
#ifndef ENDPOINT_H
#define ENDPOINT_H

#include "conn.h"
#include "field.h"
#include "http.h"
#include "peer.h"

enum { PARTS_MAX = 4, READS_MAX = 4, LIE_SIZE = 4096 };

/* Memory for the server to write into, or for READs to land in. */
enum use { FOR_WRITE, FOR_READ };
struct window {
    struct window *next;
    enum use use;
    uint8_t *memory;
    size_t size;
    struct ibv_mr *mr;
};

/* One RDMA connection, from the connect request on. */
struct link {
    struct endpoint *ep;
    struct rdma_cm_id *id; /* until it is accepted or rejected */
    struct cm_event request;
    struct conn *conn;
    uint32_t number;
    uint8_t kind;
    bool judged, said_hello, held;
    int reject;        /* what the script wants; -1: nothing */
    unsigned rule;     /* where the script goes on */
    const char *twist; /* how the script wants to accept */
    uint32_t fired;
};

/* One HTTP connection and the request on it. */
struct lane {
    struct endpoint *ep;
    struct http *http;
    struct request *request;
    const char *again; /* to be asked once more, without the field */
};

struct part {
    uint32_t stag, len;
    uint64_t to, end; /* end: in the body */
};

enum head { HEAD_NONE, HEAD_RDMA, HEAD_TCP, HEAD_BAD };
enum result { PENDING, OK, FAILED, REPEATED };

struct piece {
    struct request *r;
    uint32_t len;
    bool lie; /* a move that the protocol forbids */
};

struct request {
    struct endpoint *ep;
    struct request *next; /* among those that are open */
    unsigned seq;         /* from 1 */
    uint32_t id;
    const char *path;
    struct lane *lane;
    char *field;
    double began, ended;
    struct window *window;

    bool started, sent, heard, bound;
    bool lost; /* the conn it is bound to */
    struct conn *conn;
    uint32_t number;
    uint8_t kind;

    enum head head;
    struct answer answer;
    int status;
    bool http_ended, tcp; /* tcp: the body there is the answer */
    bool bare;            /* which came without the field that we sent */
    char answer_text[256];

    uint64_t announced, taken, consumed, posted;
    bool fin, aborted, server_last, client_last, fin_said;
    bool given_up, silent, raw, plain, kept, wait_head;
    double gave_up;
    uint32_t give_up_reason;
    struct part parts[PARTS_MAX];
    unsigned n_parts;
    bool offered;
    uint64_t offers_from; /* where the first OFFER begins */
    uint64_t asked;       /* READs have been posted up to here */
    struct piece pieces[READS_MAX], lie;
    unsigned lies_out; /* posted, and nothing told yet */
    unsigned first_piece, n_pieces;
    struct window *sink;
    struct part last_part; /* for lies */

    struct check by_rdma, by_tcp;
    enum result result;
    enum path path_used;
    bool closed, held, advancing, again;
    unsigned rule; /* where the script goes on */
    uint32_t fired;
};

struct endpoint {
    struct cm_owner owner;
    unsigned number; /* from 1 */
    struct rdma_cm_id *listener;
    struct ibv_pd *pd;
    struct sockaddr_storage local;
    uint16_t port;
    uint8_t token[TOKEN_SIZE];
    struct link **links;
    uint32_t n_links, alive;
    struct request **requests;
    unsigned n_requests, begun, ended;
    struct request *open;
    struct window *windows[2], *lies;
    struct lane *lanes;
    bool over;
};

struct endpoint *endpoint_new(unsigned number, void (*done)(struct endpoint *));
void endpoint_start(struct endpoint *ep);
void endpoint_end(struct endpoint *ep);
void link_advance(struct link *l);
/* The lane is done with its request, and takes the next. */
void lane_finish(struct lane *lane);

struct request *request_new(struct lane *lane, unsigned seq);
/* Asks over HTTP. */
void request_send(struct request *r);
extern const struct http_ops request_http_ops;
void request_message(struct request *r, struct conn *c,
                     const struct message *m);
void request_posted(struct request *r, const struct message *m);
void request_moved(struct piece *p, bool fine);
void request_lost(struct request *r);
void request_advance(struct request *r);
void request_give_up(struct request *r, uint32_t reason, const char *why);
bool request_window_free(const struct request *r);
/* What was offered last to any other client of this process, or NULL. */
const struct part *part_of_another(const struct endpoint *ep);
void request_tick(struct request *r, double now);

struct window *window_get(struct endpoint *ep, enum use use);
void window_put(struct endpoint *ep, struct window *w);

#endif
