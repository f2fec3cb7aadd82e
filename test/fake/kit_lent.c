/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * An oracle: memory that a client may READ, or that the device has not finished
 * with, is not handed to anybody else. What has been announced to a client is on
 * loan from then on, until it confirms it or says its last word, or its memory is
 * deregistered.
 */
#include "kit.h"

#include <stdlib.h>

typedef struct loan {
    struct loan *next;
    const kit_client *client;
    uint32_t id;
    uint64_t end; /* of the body, where this piece ends */
    const char *at;
    size_t len;    /* 0: none, but the last word on this id has been said */
    uint32_t stag; /* addresses are used again, tags are not */
} loan;

static struct {
    pthread_mutex_t lock;
    loan *first;
} book = {.lock = PTHREAD_MUTEX_INITIALIZER};

static loan *add(const kit_client *c, uint32_t id)
{
    loan *l = calloc(1, sizeof(*l));

    ck_assert_ptr_nonnull(l);
    l->client = c;
    l->id = id;
    l->next = book.first;
    book.first = l;
    return l;
}

static int is_over(const kit_client *c, uint32_t id)
{
    const loan *l = book.first;

    while (l && (l->client != c || l->id != id || l->len > 0)) {
        l = l->next;
    }
    return l != NULL;
}

void kit_lend(const kit_client *c, uint32_t id, uint64_t end, uint32_t stag,
              uint64_t to, size_t len)
{
    pthread_mutex_lock(&book.lock);
    if (len > 0 && !is_over(c, id)) {
        loan *l = add(c, id);

        l->end = end;
        l->at = (const char *)(uintptr_t)to;
        l->len = len;
        l->stag = stag;
    }
    pthread_mutex_unlock(&book.lock);
}

void kit_returned(const kit_client *c, uint32_t id, uint64_t bytes, int last)
{
    loan **link = &book.first;

    pthread_mutex_lock(&book.lock);
    while (*link) {
        loan *l = *link;

        if (l->client == c && l->id == id && (last || l->end <= bytes)
            && l->len > 0) {
            *link = l->next;
            free(l);
        }
        else {
            link = &l->next;
        }
    }
    if (last && !is_over(c, id)) {
        add(c, id);
    }
    pthread_mutex_unlock(&book.lock);
}

void kit_check_is_free(const char *at, size_t len)
{
    const loan *l;

    ck_assert_msg(!fake_is_posted(at, len),
                  "memory is handed out that the device has in hand");
    pthread_mutex_lock(&book.lock);
    for (l = book.first; l; l = l->next) {
        if (l->at < at + len && at < l->at + l->len
            && fake_may_be_read(l->at, l->stag)) {
            ck_abort_msg("memory is handed out that is on loan for id %u",
                         l->id);
        }
    }
    pthread_mutex_unlock(&book.lock);
}

void kit_close_book(void)
{
    while (book.first) {
        loan *l = book.first;

        book.first = l->next;
        free(l);
    }
}
