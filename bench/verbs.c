/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * verbs: what bodies cost without HTTP and without copies, the ceiling for the
 * rest.
 *
 *     verbs serve ADDRESS PORT
 *     verbs fetch HOW SIZE SECONDS BYTES ADDRESS SERVER PORT
 *
 * HOW is write (unsignaled RDMA WRITEs), write-signaled, or read. For each body
 * of SIZE bytes the client sends a message; the server WRITEs the body into the
 * client's memory and then sends a message, or sends a message, after which the
 * client READs. So there is one body at a time, as with one HTTP client, and
 * its end is known at the receiver. Nobody polls without sleeping. Pieces are
 * as long as those of mod_rdma and its client.
 *
 * `fetch` takes one body and compares it; the rest is as in load.c. `serve`
 * runs until it is killed, one connection at a time.
 *
 * Why not perftest: it counts what the sender has handed over, not what has
 * come; its set-up falls into what would be measured from outside; and it keeps
 * a queue of bodies in flight, which no HTTP client does.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>

#define PIECE ((uint64_t)256 * 1024) /* bytes of one WRITE or READ */
#define READS 4                      /* in flight */
#define DEPTH 256                    /* work requests: bodies up to 60 MiB */

typedef enum how { WRITE, WRITE_SIGNALED, READ } how;

/* Both ends are this program on one kind of machine: no byte order. */
typedef struct hello { /* private data of the connect request */
    uint32_t how;
    uint64_t size;
} hello;

typedef struct message {
    uint64_t to;
    uint32_t rkey;
} message;

typedef struct end {
    struct rdma_cm_id *id;
    how how;
    uint64_t size;
    char *body;
    struct ibv_mr *body_mr;
    message *out, *in;
    struct ibv_mr *out_mr, *in_mr;
} end;

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int fail(const char *what)
{
    perror(what);
    return -1;
}

/* What belongs at byte i of a body. */
static char content(uint64_t i)
{
    return (char)(i * 31 + (i >> 12) + (i >> 20));
}

/* ---- an end ------------------------------------------------------------ */

static struct ibv_qp_init_attr attributes(void)
{
    struct ibv_qp_init_attr attr = {.cap = {.max_send_wr = DEPTH,
                                            .max_recv_wr = 4,
                                            .max_send_sge = 1,
                                            .max_recv_sge = 1},
                                    .qp_type = IBV_QPT_RC};

    return attr;
}

/* Memory, registered, and a receive posted. 0 or -1. */
static int equip(end *e, unsigned access)
{
    e->body = mmap(NULL, e->size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    e->out = calloc(2, sizeof(*e->out));
    if (e->body == MAP_FAILED || !e->out) {
        return fail("memory");
    }
    e->in = e->out + 1;
    e->body_mr = ibv_reg_mr(e->id->pd, e->body, e->size, access);
    e->out_mr = rdma_reg_msgs(e->id, e->out, sizeof(*e->out));
    e->in_mr = rdma_reg_msgs(e->id, e->in, sizeof(*e->in));
    if (!e->body_mr || !e->out_mr || !e->in_mr) {
        return fail("registering memory");
    }
    return rdma_post_recv(e->id, NULL, e->in, sizeof(*e->in), e->in_mr)
               ? fail("rdma_post_recv")
               : 0;
}

static void dismantle(end *e)
{
    if (e->id) {
        rdma_disconnect(e->id);
        if (e->body_mr) {
            rdma_dereg_mr(e->body_mr);
        }
        if (e->out_mr) {
            rdma_dereg_mr(e->out_mr);
        }
        if (e->in_mr) {
            rdma_dereg_mr(e->in_mr);
        }
        rdma_destroy_ep(e->id);
    }
    if (e->body && e->body != MAP_FAILED) {
        munmap(e->body, e->size);
    }
    free(e->out);
    memset(e, 0, sizeof(*e));
}

/* Where the other end finds our memory. */
static int say(end *e)
{
    e->out->to = (uintptr_t)e->body;
    e->out->rkey = e->body_mr->rkey;
    return rdma_post_send(e->id, NULL, e->out, sizeof(*e->out), e->out_mr,
                          IBV_SEND_SIGNALED)
               ? fail("rdma_post_send")
               : 0;
}

/* Sleep until a message has come. 0, or -1: none will. */
static int hear(end *e, message *m)
{
    struct ibv_wc wc;

    if (rdma_get_recv_comp(e->id, &wc) != 1 || wc.status != IBV_WC_SUCCESS) {
        return -1;
    }
    *m = *e->in;
    return rdma_post_recv(e->id, NULL, e->in, sizeof(*e->in), e->in_mr)
               ? fail("rdma_post_recv")
               : 0;
}

/* Sleep until n more work requests have completed. */
static int reap(end *e, unsigned n)
{
    struct ibv_wc wc;

    while (n-- > 0) {
        if (rdma_get_send_comp(e->id, &wc) != 1
            || wc.status != IBV_WC_SUCCESS) {
            fprintf(stderr, "verbs: a work request failed\n");
            return -1;
        }
    }
    return 0;
}

/* ---- server ------------------------------------------------------------ */

/* One body, as asked for. */
static int give(end *e, const message *m)
{
    unsigned pieces = 0;
    uint64_t at, n;

    for (at = 0; e->how != READ && at < e->size; at += n) {
        n = e->size - at < PIECE ? e->size - at : PIECE;
        if (rdma_post_write(e->id, NULL, e->body + at, n, e->body_mr,
                            e->how == WRITE ? 0 : IBV_SEND_SIGNALED,
                            m->to + at, m->rkey)) {
            return fail("rdma_post_write");
        }
        pieces += e->how == WRITE_SIGNALED;
    }
    return say(e) || reap(e, pieces + 1) ? -1 : 0;
}

static void serve_one(struct rdma_cm_id *id)
{
    struct rdma_conn_param param = {.responder_resources = READS};
    end e = {.id = id};
    message m;
    hello h;
    uint64_t i;

    if (id->event->param.conn.private_data_len < sizeof(h)) {
        rdma_destroy_ep(id);
        return;
    }
    memcpy(&h, id->event->param.conn.private_data, sizeof(h));
    e.how = (how)h.how;
    e.size = h.size;
    if (equip(&e, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ)
        || rdma_accept(id, &param)) {
        perror("verbs: accepting");
    }
    else {
        for (i = 0; i < e.size; i++) {
            e.body[i] = content(i);
        }
        while (hear(&e, &m) == 0 && give(&e, &m) == 0) {
        }
    }
    dismantle(&e);
}

static int serve(const char *address, const char *port)
{
    struct rdma_addrinfo hints = {.ai_flags = RAI_PASSIVE,
                                  .ai_port_space = RDMA_PS_TCP};
    struct ibv_qp_init_attr attr = attributes();
    struct rdma_addrinfo *res;
    struct rdma_cm_id *listener;
    struct rdma_cm_id *id;

    if (rdma_getaddrinfo(address, port, &hints, &res)
        || rdma_create_ep(&listener, res, NULL, &attr)
        || rdma_listen(listener, 1)) {
        return fail("verbs: listening");
    }
    printf("ready\n");
    fflush(stdout);
    while (rdma_get_request(listener, &id) == 0) {
        serve_one(id);
    }
    return fail("rdma_get_request");
}

/* ---- client ------------------------------------------------------------ */

static int read_body(end *e, const message *m)
{
    unsigned flying = 0;
    uint64_t at, n;

    for (at = 0; at < e->size; at += n) {
        n = e->size - at < PIECE ? e->size - at : PIECE;
        if (flying == READS) {
            if (reap(e, 1)) {
                return -1;
            }
            flying--;
        }
        if (rdma_post_read(e->id, NULL, e->body + at, n, e->body_mr,
                           IBV_SEND_SIGNALED, m->to + at, m->rkey)) {
            return fail("rdma_post_read");
        }
        flying++;
    }
    return reap(e, flying);
}

static int fetch_one(end *e)
{
    message m;

    return say(e) || hear(e, &m) || reap(e, 1)
                   || (e->how == READ && read_body(e, &m))
               ? -1
               : 0;
}

static int is_right(const end *e)
{
    uint64_t i;

    for (i = 0; i < e->size; i++) {
        if (e->body[i] != content(i)) {
            fprintf(stderr, "verbs: the body differs at byte %" PRIu64 "\n", i);
            return 0;
        }
    }
    return 1;
}

static int fetch_many(end *e, double seconds, uint64_t bytes)
{
    uint64_t requests = 0;
    double start, begun, ended, slowest = 0;
    char line[16];

    if (fetch_one(e) || !is_right(e)) {
        return -1;
    }
    printf("ready\n");
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin)) {
        return 0;
    }
    start = ended = now();
    while (ended - start < seconds || requests * e->size < bytes) {
        begun = ended;
        if (fetch_one(e)) {
            return -1;
        }
        ended = now();
        requests++;
        if (ended - begun > slowest) {
            slowest = ended - begun;
        }
    }
    printf("{\"requests\": %" PRIu64 ", \"bytes\": %" PRIu64
           ", \"seconds\": %.6f, \"slowest\": %.6f}\n",
           requests, requests * e->size, ended - start, slowest);
    fflush(stdout);
    return 0;
}

static int connect_to(end *e, const char *address, const char *server,
                      const char *port)
{
    struct rdma_addrinfo here = {.ai_flags = RAI_PASSIVE,
                                 .ai_port_space = RDMA_PS_TCP};
    struct rdma_addrinfo there = {.ai_port_space = RDMA_PS_TCP};
    struct ibv_qp_init_attr attr = attributes();
    hello h = {(uint32_t)e->how, e->size};
    struct rdma_conn_param param = {.private_data = &h,
                                    .private_data_len = sizeof(h),
                                    .initiator_depth = READS};
    struct rdma_addrinfo *local;
    struct rdma_addrinfo *res;

    if (rdma_getaddrinfo(address, NULL, &here, &local)) {
        return fail("rdma_getaddrinfo");
    }
    there.ai_src_addr = local->ai_src_addr;
    there.ai_src_len = local->ai_src_len;
    if (rdma_getaddrinfo(server, port, &there, &res)
        || rdma_create_ep(&e->id, res, NULL, &attr)) {
        return fail("verbs: finding the server");
    }
    rdma_freeaddrinfo(local);
    rdma_freeaddrinfo(res);
    if (equip(e, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)) {
        return -1;
    }
    if (rdma_connect(e->id, &param)) {
        return fail("rdma_connect");
    }
    /* siw overlooks what arrives during the last steps of an accept, until more
     * arrives; and nothing here is sent twice. */
    usleep(300000);
    return 0;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"write", "write-signaled", "read"};
    end e;
    unsigned i;
    int rc;

    if (argc == 4 && strcmp(argv[1], "serve") == 0) {
        return serve(argv[2], argv[3]) ? 1 : 0;
    }
    memset(&e, 0, sizeof(e));
    for (i = 0; argc == 9 && i < 3 && strcmp(argv[2], names[i]) != 0; i++) {
    }
    if (argc != 9 || i == 3 || strcmp(argv[1], "fetch") != 0) {
        fprintf(stderr,
                "usage: verbs serve ADDRESS PORT\n"
                "       verbs fetch write|write-signaled|read SIZE SECONDS"
                " BYTES ADDRESS SERVER PORT\n");
        return 2;
    }
    e.how = (how)i;
    e.size = strtoull(argv[3], NULL, 10);
    rc = connect_to(&e, argv[6], argv[7], argv[8])
         || fetch_many(&e, strtod(argv[4], NULL),
                       strtoull(argv[5], NULL, 10));
    dismantle(&e);
    return rc;
}
