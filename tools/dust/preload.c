/* libdust-run - puts dust before the SQLite of a program that knows nothing of it (dust run).
 *
 * Every use of SQLite goes through sqlite3_initialize(), also from within the library, which calls it through the dynamic
 * linker: here it comes first. The real one is called, and when it has come to its end for the first time (it calls itself
 * on its way, through sqlite3_vfs_register and others), dust is registered as the default VFS and as an automatic
 * extension. After sqlite3_shutdown() both are gone; the next call registers them again.
 *
 * libdust is loaded only then: a program without SQLite loads nothing, and notices nothing. If it cannot be, the program
 * gets an error from sqlite3_initialize(), and so from whatever it does: better than writing where nothing is replicated.
 *
 * No lock is held over a call of the real one. A thread that comes while another is registering waits for it: until
 * then a database would be opened without dust. */
#include <dlfcn.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef int (*int_fn)(void);

static __thread int depth; /* of calls from within the real one, or from dust */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* over registering */
static _Atomic int registered;

static int_fn next_of(const char *name)
{
    return (int_fn)dlsym(RTLD_NEXT, name);
}

/* libdust beside this library, or wherever the dynamic linker finds it. */
static int_fn dust_register_fn(void)
{
    char path[4200];
    Dl_info self;
    void *lib = NULL;
    char *slash;

    if (dladdr((void *)&registered, &self) != 0 && self.dli_fname != NULL &&
        snprintf(path, sizeof path, "%s", self.dli_fname) < 4096 && (slash = strrchr(path, '/')) != NULL) {
        strcpy(slash + 1, "libdust.so");
        lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    if (lib == NULL) {
        lib = dlopen("libdust.so", RTLD_NOW | RTLD_LOCAL);
    }
    return lib != NULL ? (int_fn)dlsym(lib, "dust_register") : NULL;
}

static int register_once(void)
{
    static int_fn fn;
    int rc = SQLITE_OK;

    pthread_mutex_lock(&mutex);
    if (!atomic_load(&registered)) {
        fn = fn != NULL ? fn : dust_register_fn();
        rc = fn != NULL ? fn() : SQLITE_CANTOPEN;
        atomic_store(&registered, rc == SQLITE_OK);
    }
    pthread_mutex_unlock(&mutex);
    return rc;
}

EXPORT int sqlite3_initialize(void)
{
    static _Atomic(int_fn) real;
    int_fn fn = atomic_load_explicit(&real, memory_order_relaxed);
    int rc;

    if (fn == NULL) {
        fn = next_of("sqlite3_initialize");
        if (fn == NULL) {
            return SQLITE_CANTOPEN; /* nobody but a program with SQLite calls it */
        }
        atomic_store_explicit(&real, fn, memory_order_relaxed);
    }
    depth++;
    rc = fn();
    if (rc == SQLITE_OK && depth == 1 && !atomic_load(&registered)) {
        rc = register_once();
    }
    depth--;
    return rc;
}

EXPORT int sqlite3_shutdown(void)
{
    int_fn fn = next_of("sqlite3_shutdown");
    int rc;

    depth++; /* it initializes, to forget automatic extensions */
    rc = fn != NULL ? fn() : SQLITE_OK;
    depth--;
    atomic_store(&registered, 0);
    return rc;
}
