#include "raft/dwell.h"

#include <sched.h>

static void on_idle(uv_idle_t *idle)
{
    struct dwell *d = idle->data;

    if (uv_hrtime() - d->since_ns < DWELL_US * 1000ull) {
        sched_yield();
        return;
    }
    uv_idle_stop(idle);
    if (d->worth > 0) {
        d->worth--;
    }
}

void dwell_init(struct dwell *d, uv_loop_t *loop)
{
    *d = (struct dwell){.worth = 1};
    uv_idle_init(loop, &d->idle);
    d->idle.data = d;
}

void dwell_close(struct dwell *d)
{
    if (!uv_is_closing((uv_handle_t *)&d->idle)) {
        uv_close((uv_handle_t *)&d->idle, NULL);
    }
}

void dwell_event(struct dwell *d)
{
    d->events++;
    if (uv_is_closing((uv_handle_t *)&d->idle)) {
        return; /* libuv would count it as active for ever, and the loop would never end */
    }
    if (uv_is_active((uv_handle_t *)&d->idle)) {
        d->worth += d->worth < DWELL_WORTH_MAX;
    } else if (d->worth > 0 || d->events % DWELL_PROBE_EVERY == 0) {
        uv_idle_start(&d->idle, on_idle);
    } else {
        return;
    }
    d->since_ns = uv_hrtime();
}
