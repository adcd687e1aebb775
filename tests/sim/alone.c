/* Each machine of the simulation has one process, so that there is nobody to serve: no thread, no socket. What several
 * processes do to one another is tried with real ones (tests/attach). */
#include "vfs/attachment.h"
#include "vfs/service.h"

int __wrap_service_start(struct service **out, struct database *db, const struct service_calls *calls, struct err *e);
int __wrap_attachment_open(struct database *db, const struct takeover *t, uint32_t timeout_ms, struct err *e);

int __wrap_service_start(struct service **out, struct database *db, const struct service_calls *calls, struct err *e)
{
    (void)db, (void)calls, (void)e;
    *out = NULL;
    return DUST_OK;
}

int __wrap_attachment_open(struct database *db, const struct takeover *t, uint32_t timeout_ms, struct err *e)
{
    int rv = hostlock_take(&db->lock, db->dir, e);

    (void)t, (void)timeout_ms;
    return rv == DUST_OK ? err_set(e, DUST_AGAIN, "this process is the host") : rv;
}
