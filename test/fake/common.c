/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include "common.h"

#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "../../rdma_conn_private.h"

TCase *common_group(Suite *s, const char *name, void (*setup)(void),
                    void (*teardown)(void))
{
    TCase *t = tcase_create(name);

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    suite_add_tcase(s, t);
    return t;
}

int common_main(const char *name, void (*add)(Suite *s))
{
    Suite *suite = suite_create(name);
    SRunner *runner;
    int failed;

    fake_seed();
    add(suite);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

static void sent(rdma_conn_wr *wr, rdma_conn *c, int ok)
{
    (void)c;
    (void)ok;
    free(wr);
}

int common_send_raw(rdma_conn *c, void *at, uint32_t lkey, const void *bytes,
                    size_t len)
{
    rdma_conn_wr *wr = calloc(1, sizeof(*wr));
    struct ibv_sge sge = {(uintptr_t)at, (uint32_t)len, lkey};
    struct ibv_send_wr swr = {.wr_id = (uintptr_t)wr,
                              .sg_list = &sge,
                              .num_sge = 1,
                              .opcode = IBV_WR_SEND,
                              .send_flags = IBV_SEND_SIGNALED};
    struct ibv_send_wr *bad;
    int rc;

    ck_assert_ptr_nonnull(wr);
    wr->done = sent;
    rdma_conn_lock(c); /* as if rdma_conn had posted data */
    memcpy(at, bytes, len);
    wr->prev = c->inflight.prev;
    wr->next = &c->inflight;
    c->inflight.prev->next = wr;
    c->inflight.prev = wr;
    c->ndata++;
    rc = ibv_post_send(rdma_conn_id(c)->qp, &swr, &bad);
    rdma_conn_unlock(c);
    return rc;
}
