/* Copyright 2026 The mod_rdma authors
 * SPDX-License-Identifier: Apache-2.0
 */
#include <string.h>
#include <unistd.h>

#include <httpd.h>
#include <http_config.h>
#include <http_core.h>
#include <http_log.h>
#include <http_protocol.h>
#include <ap_mpm.h>
#include <apr_strings.h>
#include <mod_status.h>

#include "rdma_count.h"
#include "rdma_status.h"
#include "rdma_version.h"

APLOG_USE_MODULE(rdma);

#define KEPT "mod_rdma: counters" /* all builds know it, and what it names */

typedef struct kept_board {
    rdma_count_board *board;
    apr_uint32_t layout;
} kept_board;

static rdma_count_board *board; /* NULL: there is no memory for it */

/* ---- the board --------------------------------------------------------- */

/* Twice as many as serve at a time: those of the last generation may still be
 * finishing what they have begun. */
static unsigned slots_needed(void)
{
    int n = 0;

    return ap_mpm_query(AP_MPMQ_HARD_LIMIT_DAEMONS, &n) == APR_SUCCESS && n > 0
               ? 2 * (unsigned)n
               : 2;
}

void rdma_status_open(server_rec *s)
{
    kept_board *kept = ap_retained_data_get(KEPT);

    if (!kept) {
        kept = ap_retained_data_create(KEPT, sizeof(*kept));
    }
    /* Another build may have been loaded until now. What is left of its children
     * goes on counting on its board, at which nobody looks any more. */
    if (!kept->board || kept->layout != rdma_count_layout()) {
        kept->board = rdma_count_board_create(slots_needed());
        kept->layout = rdma_count_layout();
    }
    board = kept->board;
    if (!board) {
        ap_log_error(APLOG_MARK, APLOG_ERR, errno, s,
                     "RDMA0006: no shared memory for the counters: there is no "
                     "status");
    }
}

void rdma_status_child_init(apr_pool_t *pchild, server_rec *s)
{
    (void)pchild;
    if (board && rdma_count_claim(board, getpid())) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, s,
                     "RDMA0007: more children than counters: what this one "
                     "does is not in the status");
    }
}

void rdma_status_child_status(server_rec *s, pid_t pid, ap_generation_t gen,
                              int slot, mpm_child_status state)
{
    (void)s;
    (void)gen;
    (void)slot;
    if (board && state == MPM_CHILD_EXITED) {
        rdma_count_release(board, pid);
    }
}

/* ---- text -------------------------------------------------------------- */

static void put_lines(request_rec *r, const char *prefix)
{
    unsigned id;

    for (id = 0; id < RDMA_COUNT_N; id++) {
        ap_rprintf(r, "%s%s: %" APR_UINT64_T_FMT "\n", prefix,
                   rdma_count_infos[id].name, rdma_count_total(board, id));
    }
}

/* ---- HTML -------------------------------------------------------------- */

static void put_totals(request_rec *r)
{
    const char *group = "";
    unsigned id;

    ap_rputs("<table>\n", r);
    for (id = 0; id < RDMA_COUNT_N; id++) {
        const rdma_count_info *info = &rdma_count_infos[id];

        if (strcmp(info->group, group)) {
            group = info->group;
            ap_rprintf(r, "<tr><th colspan=\"3\" align=\"left\">%s</th></tr>\n",
                       group);
        }
        ap_rprintf(r,
                   "<tr><td>%s</td><td align=\"right\">%" APR_UINT64_T_FMT
                   "</td><td>%s</td></tr>\n",
                   info->name, rdma_count_total(board, id), info->what);
    }
    ap_rputs("</table>\n", r);
}

/* What a child holds; that there is one needs no column. */
static int is_column(unsigned id)
{
    return rdma_count_infos[id].kind == RDMA_COUNT_GAUGE
           && id != RDMA_COUNT_Children;
}

static void put_child(request_rec *r, unsigned i, pid_t pid)
{
    unsigned id;

    ap_rprintf(r, "<tr><td align=\"right\">%" APR_PID_T_FMT "</td>", pid);
    for (id = 0; id < RDMA_COUNT_N; id++) {
        if (is_column(id)) {
            ap_rprintf(r, "<td align=\"right\">%" APR_UINT64_T_FMT "</td>",
                       rdma_count_held(board, i, id));
        }
    }
    ap_rputs("</tr>\n", r);
}

static void put_children(request_rec *r)
{
    unsigned i, id;

    ap_rputs("<table>\n<tr><th>Child</th>", r);
    for (id = 0; id < RDMA_COUNT_N; id++) {
        if (is_column(id)) {
            ap_rprintf(r, "<th>%s</th>", rdma_count_infos[id].name);
        }
    }
    ap_rputs("</tr>\n", r);
    for (i = 0; i < rdma_count_slots(board); i++) {
        pid_t pid = rdma_count_pid(board, i);

        if (pid) {
            put_child(r, i, pid);
        }
    }
    ap_rputs("</table>\n", r);
}

static void put_page(request_rec *r)
{
    char now[APR_RFC822_DATE_LEN];

    apr_rfc822_date(now, r->request_time);
    ap_rprintf(r,
               "<!DOCTYPE html>\n<html lang=\"en\"><head>"
               "<meta charset=\"utf-8\"/><title>RDMA status</title></head>\n"
               "<body><h1>RDMA status of %s</h1>\n"
               "<p>mod_rdma %s, %s</p>\n",
               ap_escape_html(r->pool, ap_get_server_name(r)),
               MOD_RDMA_VERSION, now);
    put_totals(r);
    put_children(r);
    ap_rputs("</body></html>\n", r);
}

/* ---- the ways to ask --------------------------------------------------- */

static int is_auto(request_rec *r)
{
    char *last;
    char *word = r->args ? apr_strtok(apr_pstrdup(r->pool, r->args), "&", &last)
                         : NULL;

    while (word && strcmp(word, "auto")) {
        word = apr_strtok(NULL, "&", &last);
    }
    return word != NULL;
}

int rdma_status_handler(request_rec *r)
{
    if (!r->handler || strcmp(r->handler, "rdma-status")) {
        return DECLINED;
    }
    r->allowed = AP_METHOD_BIT << M_GET;
    if (r->method_number != M_GET) {
        return HTTP_METHOD_NOT_ALLOWED;
    }
    if (!board) {
        return HTTP_SERVICE_UNAVAILABLE;
    }
    apr_table_setn(r->headers_out, "Cache-Control", "no-store");
    if (is_auto(r)) {
        ap_set_content_type(r, "text/plain; charset=utf-8");
        put_lines(r, "");
    }
    else {
        ap_set_content_type(r, "text/html; charset=utf-8");
        put_page(r);
    }
    return OK;
}

int rdma_status_section(request_rec *r, int flags)
{
    if (!board) {
        return DECLINED;
    }
    if (flags & AP_STATUS_SHORT) {
        put_lines(r, "Rdma");
        return OK;
    }
    ap_rputs("<hr />\n<h2>RDMA</h2>\n", r);
    if (flags & AP_STATUS_NOTABLE) {
        ap_rputs("<pre>\n", r);
        put_lines(r, "");
        ap_rputs("</pre>\n", r);
    }
    else {
        put_totals(r);
        put_children(r);
    }
    return OK;
}
