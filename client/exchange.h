/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * exchange: one HTTP request and its response, by libcurl. Knows the fields
 * that RDMA needs, and nothing of RDMA itself.
 *
 * Used by one thread at a time. Its libcurl handles live on from request to
 * request, and with them kept-alive connections.
 */
#ifndef RDMAHTTP_EXCHANGE_H
#define RDMAHTTP_EXCHANGE_H

#include <stddef.h>
#include <stdint.h>

#include "rdmahttp.h"

typedef struct rdmahttp_exchange rdmahttp_exchange;

/* The head of the final response. */
typedef struct rdmahttp_head {
    long status;
    int http11; /* the response is HTTP/1.1 */
    char *rdma; /* the RDMA field's lines joined by ", "; NULL: none */
    size_t rdma_len;
    int nominated;  /* Connection has the option RDMA */
    int has_length; /* Content-Length */
    uint64_t length;
    int chunked;
    char *location; /* NULL: none */
} rdmahttp_head;

/* What else there is to do while HTTP goes on. */
typedef enum rdmahttp_beside {
    RDMAHTTP_BESIDE_NONE, /* nothing: HTTP is all */
    RDMAHTTP_BESIDE_WAIT, /* not now: rdmahttp_exchange_wake(), or a while */
    RDMAHTTP_BESIDE_MORE, /* some has been done, there may be more */
    RDMAHTTP_BESIDE_DONE, /* all has been done, whatever becomes of HTTP */
    RDMAHTTP_BESIDE_STOP  /* give up */
} rdmahttp_beside;

typedef struct rdmahttp_ask {
    const char *url;
    const char *field;   /* the RDMA field's value; NULL: none */
    const char *masked;  /* the same, for people */
    const char *address; /* local, a literal; NULL: any */
    int family;          /* AF_INET, AF_INET6; 0: any */
    int no_proxy;        /* 1: go to the server itself */
    int keep_private;    /* 1: no Authorization or Cookie of the caller's */
    const char *const *headers;
    /* The connection is there, the request goes out next; may come again only
     * for a request without field. address: the server's. May be NULL. */
    void (*connected)(void *baton, const char *address);
    /* The final head. 0, or -1: give up. */
    int (*head)(void *baton, const rdmahttp_head *head);
    /* Bytes of the body. 0, or -1: give up. */
    int (*body)(void *baton, const void *bytes, size_t n);
    /* Called again and again once the head is there, also when HTTP is over (1)
     * and until it returns anything but WAIT and MORE then. Never waits. */
    rdmahttp_beside (*beside)(void *baton, int over);
    void *baton;
    int cancel_fd; /* readable: give up; -1: none */
} rdmahttp_ask;

typedef enum rdmahttp_outcome {
    RDMAHTTP_HTTP_OK = 0,
    RDMAHTTP_HTTP_STOPPED,   /* a callback said so */
    RDMAHTTP_HTTP_CANCELLED, /* cancel_fd said so */
    RDMAHTTP_HTTP_REPEATED,  /* libcurl wanted to send the field twice */
    RDMAHTTP_HTTP_NOT_SENT,  /* no connection: nothing has been asked */
    RDMAHTTP_HTTP_ELSEWHERE, /* the same, but another local address might do */
    RDMAHTTP_HTTP_CUT,       /* cut, timeout: before or after the head */
    RDMAHTTP_HTTP_TLS,
    RDMAHTTP_HTTP_BROKEN, /* not HTTP, or more than we take */
    RDMAHTTP_HTTP_USAGE,  /* the URL, or something else of the caller's */
    RDMAHTTP_HTTP_MEMORY
} rdmahttp_outcome;

/* NULL: out of memory. conf outlives it. */
rdmahttp_exchange *rdmahttp_exchange_create(const rdmahttp_conf *conf);
void rdmahttp_exchange_destroy(rdmahttp_exchange *x);

/* Any thread: call beside() again. */
void rdmahttp_exchange_wake(rdmahttp_exchange *x);

/* Do it all; message (RDMAHTTP_TEXT_MAX bytes) says what went wrong. */
rdmahttp_outcome rdmahttp_exchange_run(rdmahttp_exchange *x,
                                       const rdmahttp_ask *ask, char *message);

#endif /* RDMAHTTP_EXCHANGE_H */
