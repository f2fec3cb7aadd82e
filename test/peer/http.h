/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
/* HTTP/1.x of the client, as little as the tests need. */
#ifndef HTTP_H
#define HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum framing { FRAME_NONE, FRAME_LENGTH, FRAME_CHUNKED, FRAME_CLOSE };

struct http_head {
    int status;
    enum framing framing;
    uint64_t length;
    bool has_rdma, nominated, keep;
    char rdma[8192]; /* all lines, joined */
};

struct http;
struct http_ops {
    /* The request has left. */
    void (*sent)(void *user);
    void (*head)(void *user, const struct http_head *head);
    void (*body)(void *user, const uint8_t *data, size_t len);
    /* The response is at its end; why is NULL where it is whole. */
    void (*end)(void *user, const char *why);
};

/* NULL when the socket cannot be made or bound. `local` may be NULL. */
struct http *http_open(const struct sockaddr_storage *server,
                       const struct sockaddr_storage *local);
void http_send(struct http *h, const char *text, size_t len, bool head_only,
               const struct http_ops *ops, void *user);
/* Whether it can take another request. */
bool http_reusable(const struct http *h);
/* All heads and trailers since the request, as they came. */
const char *http_heads(const struct http *h, size_t *len);
/* No callbacks any more. */
void http_close(struct http *h, bool reset);

socklen_t address_size(const struct sockaddr_storage *a);

#endif
