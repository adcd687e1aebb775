/* Coroutines, virtual time, and the calls by which threads wait for each other.
 *
 * A coroutine is begun with makecontext and then switched with _setjmp and _longjmp, which make no system call. The
 * scheduler is the main context.
 *
 * A mutex is two numbers in the memory of the pthread_mutex_t: who has it, and how many wait. The global ones are the
 * exception: the program's static data stands for that of several processes, so each machine has its own of them.
 *
 * Which task goes on, which waiter is woken, when a timer fires: all drawn by chance. Where a thread may lose the
 * processor is at the calls replaced here and in loop.c, net.c, files.c; that is where others can see what it has done,
 * save for atomic variables. */
#include "tests/sim/sched.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#include "tests/sim/machine.h"

#define STACK_BYTES ((size_t)1 << 20)
#define TASKS_MAX 256
#define EVENTS_MAX 65536
#define GLOBALS_MAX 64
#define WALL_CLOCK_S 1700000000ull

struct task {
    unsigned id;
    struct machine *machine;
    unsigned life;
    char name[16];
    enum { TASK_READY, TASK_WAITING, TASK_OVER } state;
    const void *key;
    uint64_t until_ns;
    bool timed_out;
    bool begun;
    void (*run)(void *arg);
    void *arg;
    void *note;
    jmp_buf here;
    void *stack;
    struct task *free_next;
};

struct event {
    uint64_t at_ns, order;
    void (*fn)(void *arg);
    void *arg;
};

struct lock {       /* in a pthread_mutex_t */
    unsigned owner; /* a task's id, 0: free */
    unsigned waiters;
};
_Static_assert(sizeof(struct lock) <= sizeof(pthread_mutex_t), "a lock fits into a mutex");

static struct {
    struct task *tasks[TASKS_MAX]; /* those that are not over */
    unsigned n_tasks;
    unsigned last_id;
    struct task *self;
    jmp_buf main;
    void *free_stacks[TASKS_MAX];
    unsigned n_free_stacks;
    struct event heap[EVENTS_MAX];
    unsigned n_events;
    uint64_t event_order;
    struct {
        const void *address;
        unsigned machine;
        struct lock lock;
    } globals[GLOBALS_MAX];
    unsigned n_globals;
} sched;

/* ---- events ---- */

static bool before(const struct event *a, const struct event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

void event_at(uint64_t ns, void (*fn)(void *arg), void *arg)
{
    struct event e = {.at_ns = ns, .order = sched.event_order++, .fn = fn, .arg = arg};
    unsigned i = sched.n_events++;

    if (sched.n_events > EVENTS_MAX) {
        stuck("more than %u events are to come", EVENTS_MAX);
    }
    for (; i > 0 && before(&e, &sched.heap[(i - 1) / 2]); i = (i - 1) / 2) {
        sched.heap[i] = sched.heap[(i - 1) / 2];
    }
    sched.heap[i] = e;
}

static struct event event_pop(void)
{
    struct event first = sched.heap[0], last = sched.heap[--sched.n_events];
    unsigned i = 0, child;

    while ((child = 2 * i + 1) < sched.n_events) {
        child += child + 1 < sched.n_events && before(&sched.heap[child + 1], &sched.heap[child]);
        if (!before(&sched.heap[child], &last)) {
            break;
        }
        sched.heap[i] = sched.heap[child];
        i = child;
    }
    sched.heap[i] = last;
    return first;
}

/* ---- tasks ---- */

struct task *task_self(void)
{
    return sched.self;
}

struct machine *task_machine(void)
{
    return sched.self != NULL ? sched.self->machine : NULL;
}

void task_set_note(void *note)
{
    sched.self->note = note;
}

void *task_note(void)
{
    return sched.self != NULL ? sched.self->note : NULL;
}

bool task_over(const struct task *t)
{
    return t->state == TASK_OVER;
}

static void *stack_take(void)
{
    void *p;

    if (sched.n_free_stacks > 0) {
        return sched.free_stacks[--sched.n_free_stacks];
    }
    p = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return must(p != MAP_FAILED ? p : NULL);
}

struct task *task_spawn(struct machine *m, const char *name, void (*run)(void *arg), void *arg)
{
    struct task *t = must(calloc(1, sizeof *t));

    if (sched.n_tasks == TASKS_MAX) {
        stuck("more than %d tasks", TASKS_MAX);
    }
    t->id = ++sched.last_id;
    t->machine = m;
    t->life = m != NULL ? m->life : 0;
    t->run = run;
    t->arg = arg;
    snprintf(t->name, sizeof t->name, "%s", name);
    t->stack = stack_take();
    sched.tasks[sched.n_tasks++] = t;
    return t;
}

static void to_scheduler(void)
{
    if (_setjmp(sched.self->here) == 0) {
        _longjmp(sched.main, 1);
    }
}

static void forget(unsigned i)
{
    struct task *t = sched.tasks[i];

    t->state = TASK_OVER;
    sched.free_stacks[sched.n_free_stacks++] = t->stack;
    sched.tasks[i] = sched.tasks[--sched.n_tasks];
}

static void begin(void)
{
    struct task *t = sched.self;

    t->run(t->arg);
    t->state = TASK_OVER;
    task_wake(t);
    to_scheduler();
}

static void run_slice(struct task *t)
{
    ucontext_t context;

    sched.self = t;
    trace('r', t->id, 0);
    if (_setjmp(sched.main) == 0) {
        if (t->begun) {
            _longjmp(t->here, 1);
        }
        t->begun = true;
        getcontext(&context);
        context.uc_stack.ss_sp = t->stack;
        context.uc_stack.ss_size = STACK_BYTES;
        context.uc_link = NULL;
        makecontext(&context, begin, 0);
        setcontext(&context);
    }
    sched.self = NULL;
    tally()->slices++;
    world.now_ns += chance_between(300, 4000);
}

static bool paused(const struct task *t)
{
    return t->machine != NULL && t->machine->paused_ns > world.now_ns;
}

/* One of those that can run, or NULL; and when the next one can. */
static struct task *choose(uint64_t *next_ns)
{
    struct task *ready[TASKS_MAX];
    unsigned n = 0;

    *next_ns = NEVER;
    for (unsigned i = 0; i < sched.n_tasks; i++) {
        struct task *t = sched.tasks[i];

        if (t->state == TASK_WAITING && t->until_ns <= world.now_ns) {
            t->state = TASK_READY;
            t->timed_out = true;
        }
        if (t->state == TASK_WAITING) {
            *next_ns = t->until_ns < *next_ns ? t->until_ns : *next_ns;
        } else if (paused(t)) {
            *next_ns = t->machine->paused_ns < *next_ns ? t->machine->paused_ns : *next_ns;
        } else {
            ready[n++] = t;
        }
    }
    return n == 0 ? NULL : ready[n == 1 ? 0 : chance_below(n)];
}

static void sweep(void)
{
    for (unsigned i = 0; i < sched.n_tasks;) {
        if (sched.tasks[i]->state == TASK_OVER) {
            forget(i);
        } else {
            i++;
        }
    }
}

bool sched_run(const struct task *task, uint64_t until_ns)
{
    uint64_t next_ns;
    struct task *t;

    while (task == NULL || task->state != TASK_OVER) {
        if (world.now_ns >= until_ns) {
            return false;
        }
        while (sched.n_events > 0 && sched.heap[0].at_ns <= world.now_ns) {
            struct event e = event_pop();

            e.fn(e.arg);
        }
        t = choose(&next_ns);
        if (t != NULL) {
            run_slice(t);
            if (t->state == TASK_OVER) {
                sweep();
            }
            continue;
        }
        if (sched.n_events > 0 && sched.heap[0].at_ns < next_ns) {
            next_ns = sched.heap[0].at_ns;
        }
        if (next_ns == NEVER) {
            stuck("nothing is left to happen");
        }
        world.now_ns = next_ns < until_ns ? next_ns : until_ns;
    }
    return true;
}

void sched_kill(const struct machine *m)
{
    for (unsigned i = 0; i < sched.n_tasks;) {
        if (sched.tasks[i]->machine == m) {
            forget(i);
        } else {
            i++;
        }
    }
    for (unsigned i = 0; i < sched.n_globals; i++) {
        if (sched.globals[i].machine == m->number) {
            sched.globals[i].lock = (struct lock){0};
        }
    }
}

bool task_wait(const void *key, uint64_t until_ns)
{
    struct task *t = sched.self;

    t->state = TASK_WAITING;
    t->key = key;
    t->until_ns = until_ns;
    if (until_ns != NEVER && t->machine != NULL && t->machine->late_ns != 0) {
        t->until_ns += chance_below(t->machine->late_ns);
    }
    t->timed_out = false;
    to_scheduler();
    return !t->timed_out;
}

void task_sleep(uint64_t ns)
{
    task_wait(NULL, world.now_ns + ns);
}

void task_yield(void)
{
    to_scheduler();
}

void task_point(void)
{
    if (sched.self != NULL && chance(1500)) {
        to_scheduler();
    }
}

static void wake(struct task *t)
{
    t->state = TASK_READY;
    t->key = NULL;
}

void task_wake(const void *key)
{
    for (unsigned i = 0; i < sched.n_tasks; i++) {
        if (sched.tasks[i]->state == TASK_WAITING && sched.tasks[i]->key == key) {
            wake(sched.tasks[i]);
        }
    }
}

void task_wake_one(const void *key)
{
    struct task *found = NULL;
    unsigned n = 0;

    for (unsigned i = 0; i < sched.n_tasks; i++) {
        if (sched.tasks[i]->state == TASK_WAITING && sched.tasks[i]->key == key && chance_below(++n) == 0) {
            found = sched.tasks[i];
        }
    }
    if (found != NULL) {
        wake(found);
    }
}

/* ---- pthread ---- */

extern char __data_start[], _end[]; /* the linker's: this program's own variables */

int __wrap_pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *a);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *m);
int __wrap_pthread_mutex_lock(pthread_mutex_t *m);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *m);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *m);
int __wrap_pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *a);
int __wrap_pthread_cond_destroy(pthread_cond_t *c);
int __wrap_pthread_cond_signal(pthread_cond_t *c);
int __wrap_pthread_cond_broadcast(pthread_cond_t *c);
int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m);
int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *a, void *(*run)(void *), void *arg);
int __wrap_pthread_join(pthread_t thread, void **result);
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before);
int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void));
int __wrap_atexit(void (*fn)(void));
int __wrap_clock_gettime(clockid_t clock, struct timespec *out);
int __wrap_nanosleep(const struct timespec *t, struct timespec *left);
int __wrap_sched_yield(void);

static struct lock *lock_of(pthread_mutex_t *m)
{
    const char *p = (const char *)m;
    unsigned machine = sched.self != NULL && sched.self->machine != NULL ? sched.self->machine->number : 0;

    if (p < __data_start || p >= _end) {
        return (struct lock *)m;
    }
    for (unsigned i = 0; i < sched.n_globals; i++) {
        if (sched.globals[i].address == m && sched.globals[i].machine == machine) {
            return &sched.globals[i].lock;
        }
    }
    if (sched.n_globals == GLOBALS_MAX) {
        stuck("more than %d global locks", GLOBALS_MAX);
    }
    sched.globals[sched.n_globals].address = m;
    sched.globals[sched.n_globals].machine = machine;
    return &sched.globals[sched.n_globals++].lock;
}

static unsigned self_id(void)
{
    return sched.self != NULL ? sched.self->id : UINT32_MAX;
}

int __wrap_pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *a)
{
    (void)a;
    memset(m, 0, sizeof *m);
    return 0;
}

int __wrap_pthread_mutex_destroy(pthread_mutex_t *m)
{
    if (lock_of(m)->owner != 0) {
        violation("a mutex is destroyed that somebody holds");
    }
    return 0;
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
    struct lock *l = lock_of(m);

    task_point();
    if (l->owner == self_id()) {
        violation("a thread locks a mutex that it has locked already");
    }
    while (l->owner != 0) {
        if (sched.self == NULL) {
            violation("a mutex is locked that nobody can let go");
        }
        l->waiters++;
        task_wait(l, NEVER);
        l->waiters--;
    }
    l->owner = self_id();
    return 0;
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t *m)
{
    struct lock *l = lock_of(m);

    task_point();
    if (l->owner != 0) {
        return EBUSY;
    }
    l->owner = self_id();
    return 0;
}

static void unlock(pthread_mutex_t *m)
{
    struct lock *l = lock_of(m);

    if (l->owner != self_id()) {
        violation("a thread unlocks a mutex that it has not locked");
    }
    l->owner = 0;
    if (l->waiters != 0) {
        task_wake_one(l);
    }
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
    unlock(m);
    task_point();
    return 0;
}

int __wrap_pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *a)
{
    (void)a;
    memset(c, 0, sizeof *c);
    return 0;
}

int __wrap_pthread_cond_destroy(pthread_cond_t *c)
{
    (void)c;
    return 0;
}

int __wrap_pthread_cond_signal(pthread_cond_t *c)
{
    task_wake_one(c);
    return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
    task_wake(c);
    return 0;
}

/* Now and then a wait ends though nobody has signalled, as it may. */
static int cond_wait(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
    bool spurious = chance(20), woken;

    unlock(m);
    woken = task_wait(c, spurious ? world.now_ns + chance_below(MS_NS) : until_ns);
    __wrap_pthread_mutex_lock(m);
    return woken || (spurious && world.now_ns < until_ns) ? 0 : ETIMEDOUT;
}

int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
    return cond_wait(c, m, NEVER);
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *until)
{
    return cond_wait(c, m, (uint64_t)until->tv_sec * S_NS + (uint64_t)until->tv_nsec);
}

struct thread {
    void *(*run)(void *);
    void *arg;
    struct task *task;
};

static void thread_run(void *arg)
{
    struct thread *t = arg;

    t->run(t->arg);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *a, void *(*run)(void *), void *arg)
{
    struct thread *t = must(calloc(1, sizeof *t));

    (void)a;
    t->run = run;
    t->arg = arg;
    t->task = task_spawn(task_machine(), "loop", thread_run, t);
    *thread = (pthread_t)t;
    task_point();
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
    struct thread *t = (struct thread *)thread;

    while (!task_over(t->task)) {
        task_wait(t->task, NEVER);
    }
    if (result != NULL) {
        *result = NULL;
    }
    return 0;
}

/* Signals are of the one thread that all run in, and none is sent to a machine. */
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before)
{
    (void)how;
    (void)set;
    if (before != NULL) {
        sigemptyset(before);
    }
    return 0;
}

/* A machine ends by a crash only. */
int __wrap_pthread_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void))
{
    (void)prepare;
    (void)parent;
    (void)child;
    return 0;
}

int __wrap_atexit(void (*fn)(void))
{
    (void)fn;
    return 0;
}

/* ---- time ---- */

int __wrap_clock_gettime(clockid_t clock, struct timespec *out)
{
    out->tv_sec = (time_t)(world.now_ns / S_NS + (clock == CLOCK_REALTIME ? WALL_CLOCK_S : 0));
    out->tv_nsec = (long)(world.now_ns % S_NS);
    return 0;
}

int __wrap_nanosleep(const struct timespec *t, struct timespec *left)
{
    (void)left;
    task_sleep((uint64_t)t->tv_sec * S_NS + (uint64_t)t->tv_nsec);
    return 0;
}

int __wrap_sched_yield(void)
{
    task_sleep(chance_between(20 * US_NS, 100 * US_NS));
    return 0;
}
