/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "http.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "loop.h"

enum { LINE_MAX_SIZE = 16384, READ_SIZE = 262144 };
enum phase {
    PHASE_IDLE,
    PHASE_STATUS,
    PHASE_FIELDS,
    PHASE_LENGTH,
    PHASE_CHUNK,
    PHASE_DATA,
    PHASE_AFTER,
    PHASE_TRAILER,
    PHASE_CLOSE
};

struct http {
    int fd;
    enum phase phase;
    bool closed, used, head_only;
    const struct http_ops *ops;
    void *user;
    char *out;
    size_t out_len, out_done;
    char line[LINE_MAX_SIZE];
    size_t line_len;
    char *heads;
    size_t heads_len;
    uint64_t left;
    bool chunked, has_length, minor0, wants_close, wants_keep, has_connection;
    struct http_head head;
};

socklen_t address_size(const struct sockaddr_storage *a)
{
    return a->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                    : sizeof(struct sockaddr_in);
}

static void finish(struct http *h, const char *why)
{
    const struct http_ops *ops = h->ops;
    if (h->phase == PHASE_IDLE || h->closed) {
        return;
    }
    h->phase = PHASE_IDLE;
    if (why != NULL) {
        h->head.keep = false;
    }
    ops->end(h->user, why);
}

/* Calls `each` for every element of a comma separated list. */
static void options_of(struct http *h, const char *value)
{
    while (*value != '\0') {
        size_t n = strcspn(value, ", \t");
        if (n == 4 && strncasecmp(value, "RDMA", n) == 0) {
            h->head.nominated = true;
        }
        else if (n == 5 && strncasecmp(value, "close", n) == 0) {
            h->wants_close = true;
        }
        else if (n == 10 && strncasecmp(value, "keep-alive", n) == 0) {
            h->wants_keep = true;
        }
        value += n;
        value += strspn(value, ", \t");
    }
}

static void field(struct http *h, char *line)
{
    char *value = strchr(line, ':');
    if (value == NULL) {
        return;
    }
    *value++ = '\0';
    value += strspn(value, " \t");
    for (size_t n = strlen(value);
         n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t'); n--) {
        value[n - 1] = '\0';
    }
    if (strcasecmp(line, "RDMA") == 0) {
        size_t n = strlen(h->head.rdma);
        snprintf(h->head.rdma + n, sizeof h->head.rdma - n, "%s%s",
                 h->head.has_rdma ? ", " : "", value);
        h->head.has_rdma = true;
    }
    else if (strcasecmp(line, "Connection") == 0) {
        options_of(h, value);
    }
    else if (strcasecmp(line, "Content-Length") == 0) {
        h->has_length = true;
        h->head.length = strtoull(value, NULL, 10);
    }
    else if (strcasecmp(line, "Transfer-Encoding") == 0) {
        h->chunked = strcasecmp(value, "chunked") == 0;
    }
}

static void head_done(struct http *h)
{
    struct http_head *head = &h->head;
    int status = head->status;
    if (status / 100 == 1) {
        h->phase = PHASE_STATUS;
        return;
    }
    if (h->head_only || status == 204 || status == 304) {
        head->framing = FRAME_NONE;
    }
    else if (h->chunked) {
        head->framing = FRAME_CHUNKED;
    }
    else if (h->has_length) {
        head->framing = FRAME_LENGTH;
    }
    else {
        head->framing = FRAME_CLOSE;
    }
    head->keep = head->framing != FRAME_CLOSE && !h->wants_close
                 && (!h->minor0 || h->wants_keep);
    h->phase = head->framing == FRAME_CHUNKED ? PHASE_CHUNK
               : head->framing == FRAME_CLOSE ? PHASE_CLOSE
                                              : PHASE_LENGTH;
    h->left = head->framing == FRAME_LENGTH ? head->length : 0;
    h->ops->head(h->user, head);
    if (!h->closed && h->phase == PHASE_LENGTH && h->left == 0) {
        finish(h, NULL);
    }
}

static void line(struct http *h, char *text)
{
    switch (h->phase) {
    case PHASE_STATUS:
        if (strncmp(text, "HTTP/1.", 7) != 0 || strlen(text) < 12) {
            finish(h, "no status line");
            return;
        }
        memset(&h->head, 0, sizeof h->head);
        h->chunked = h->has_length = h->wants_close = h->wants_keep = false;
        h->minor0 = text[7] == '0';
        h->head.status = atoi(text + 9);
        h->phase = PHASE_FIELDS;
        break;
    case PHASE_FIELDS:
        if (*text == '\0') {
            head_done(h);
        }
        else {
            field(h, text);
        }
        break;
    case PHASE_CHUNK:
        h->left = strtoull(text, NULL, 16);
        h->phase = h->left == 0 ? PHASE_TRAILER : PHASE_DATA;
        break;
    case PHASE_AFTER:
        h->phase = PHASE_CHUNK;
        break;
    default:
        if (*text == '\0') {
            finish(h, NULL);
        }
    }
}

static void keep(struct http *h)
{
    h->heads = need(realloc(h->heads, h->heads_len + h->line_len));
    memcpy(h->heads + h->heads_len, h->line, h->line_len);
    h->heads_len += h->line_len;
}

static void eat(struct http *h, const uint8_t *data, size_t len)
{
    while (len > 0 && !h->closed && h->phase != PHASE_IDLE) {
        size_t n = len;
        if (h->phase == PHASE_LENGTH || h->phase == PHASE_DATA
            || h->phase == PHASE_CLOSE) {
            if (h->phase != PHASE_CLOSE) {
                n = h->left < len ? (size_t)h->left : len;
                h->left -= n;
            }
            h->ops->body(h->user, data, n);
            if (!h->closed && h->left == 0 && h->phase != PHASE_CLOSE) {
                if (h->phase == PHASE_DATA) {
                    h->phase = PHASE_AFTER;
                }
                else {
                    finish(h, NULL);
                }
            }
        }
        else {
            const uint8_t *lf = memchr(data, '\n', len);
            n = lf != NULL ? (size_t)(lf - data) + 1 : len;
            if (h->line_len + n >= LINE_MAX_SIZE) {
                finish(h, "a line too long");
                return;
            }
            memcpy(h->line + h->line_len, data, n);
            h->line_len += n;
            if (lf != NULL) {
                size_t end = h->line_len - 1;
                if (h->phase != PHASE_CHUNK && h->phase != PHASE_AFTER) {
                    keep(h);
                }
                if (end > 0 && h->line[end - 1] == '\r') {
                    end--;
                }
                h->line[end] = '\0';
                h->line_len = 0;
                line(h, h->line);
            }
        }
        data += n;
        len -= n;
    }
}

static void flush(struct http *h)
{
    while (h->out_done < h->out_len) {
        ssize_t n = send(h->fd, h->out + h->out_done, h->out_len - h->out_done,
                         MSG_NOSIGNAL);
        if (n < 0) {
            break;
        }
        h->out_done += (size_t)n;
    }
}

static void broken(struct http *h, const char *why)
{
    loop_unwatch(h->fd);
    h->used = true;
    h->head.keep = false;
    finish(h, h->phase == PHASE_CLOSE ? NULL : why);
}

static void ready(void *arg, unsigned events)
{
    static uint8_t data[READ_SIZE];
    struct http *h = arg;
    if ((events & EPOLLOUT) != 0) {
        flush(h);
        if (h->out_done == h->out_len) {
            loop_watch(h->fd, EPOLLIN, ready, h);
            h->ops->sent(h->user);
            if (h->closed) {
                return;
            }
        }
    }
    if ((events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) {
        ssize_t n = recv(h->fd, data, sizeof data, 0);
        if (n > 0) {
            eat(h, data, (size_t)n);
        }
        else if (n == 0) {
            broken(h, "HTTP closed");
        }
        else if (errno != EAGAIN && errno != EINTR) {
            broken(h, strerror(errno));
        }
    }
}

struct http *http_open(const struct sockaddr_storage *server,
                       const struct sockaddr_storage *local)
{
    struct http *h = need(calloc(1, sizeof *h));
    int one = 1;
    h->fd = socket(server->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(h->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(h->fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    fcntl(h->fd, F_SETFL, O_NONBLOCK);
    if ((local != NULL
         && bind(h->fd, (const struct sockaddr *)local, address_size(local))
                != 0)
        || (connect(h->fd, (const struct sockaddr *)server,
                    address_size(server))
                != 0
            && errno != EINPROGRESS)) {
        close(h->fd);
        free(h);
        return NULL;
    }
    return h;
}

void http_send(struct http *h, const char *text, size_t len, bool head_only,
               const struct http_ops *ops, void *user)
{
    free(h->out);
    h->out = need(malloc(len));
    memcpy(h->out, text, len);
    h->out_len = len;
    h->out_done = 0;
    h->line_len = 0;
    h->heads_len = 0;
    h->ops = ops;
    h->user = user;
    h->head_only = head_only;
    h->phase = PHASE_STATUS;
    h->used = true;
    loop_watch(h->fd, EPOLLIN | EPOLLOUT, ready, h);
}

bool http_reusable(const struct http *h)
{
    return !h->closed && h->phase == PHASE_IDLE && (!h->used || h->head.keep);
}

const char *http_heads(const struct http *h, size_t *len)
{
    *len = h->heads_len;
    return h->heads;
}

void http_close(struct http *h, bool reset)
{
    struct linger now = {.l_onoff = 1};
    if (h->closed) {
        return;
    }
    h->closed = true;
    loop_unwatch(h->fd);
    if (reset) {
        setsockopt(h->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    close(h->fd);
    free(h->out);
    h->out = NULL;
    free(h->heads);
    h->heads = NULL;
    loop_free(h);
}
