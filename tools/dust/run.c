/* dust run -- PROGRAM …: a program that cannot be told to load an extension, with its databases going through dust.
 *
 * A small library (preload.c) is put before the program's own (LD_PRELOAD, ld.so(8)), and told by the environment which
 * databases are meant. The dynamic linker ignores that for programs with more rights than who starts them, and programs
 * without a dynamic linker have nobody to do it: both are refused, rather than run without being replicated. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "command.h"

#define LIBRARY "libdust-run.so"
#define EXIT_NOT_EXECUTABLE 126
#define EXIT_NOT_FOUND 127

/* The library beside this program, as it is built; else where it is installed. */
static bool find_library(char out[PATH_MAX])
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;

    if (n > 0) {
        self[n] = '\0';
        slash = strrchr(self, '/');
        if (slash != NULL) {
            *slash = '\0';
            if (snprintf(out, PATH_MAX, "%s/" LIBRARY, self) < PATH_MAX && access(out, R_OK) == 0) {
                return true;
            }
        }
    }
    return snprintf(out, PATH_MAX, "%s/" LIBRARY, DUST_LIBDIR) < PATH_MAX && access(out, R_OK) == 0;
}

/* As execvp looks for it. */
static int find_program(const char *name, char out[PATH_MAX])
{
    const char *path = getenv("PATH");
    bool there = false;

    if (strchr(name, '/') != NULL) {
        snprintf(out, PATH_MAX, "%s", name);
        return access(out, F_OK) != 0   ? complain(EXIT_NOT_FOUND, "there is no program %s", name)
               : access(out, X_OK) != 0 ? complain(EXIT_NOT_EXECUTABLE, "%s cannot be executed: %s", name, strerror(errno))
                                        : EXIT_OK;
    }
    for (path = path != NULL ? path : "/usr/bin:/bin"; *path != '\0'; path += strcspn(path, ":"), path += *path == ':') {
        int n = (int)strcspn(path, ":");

        if (snprintf(out, PATH_MAX, "%.*s/%s", n == 0 ? 1 : n, n == 0 ? "." : path, name) >= PATH_MAX) {
            continue;
        }
        if (access(out, X_OK) == 0) {
            return EXIT_OK;
        }
        there = there || access(out, F_OK) == 0;
    }
    return there ? complain(EXIT_NOT_EXECUTABLE, "%s cannot be executed", name)
                 : complain(EXIT_NOT_FOUND, "there is no program %s", name);
}

/* A 64-bit program without PT_INTERP has no dynamic linker. What is no such file (a script) is not judged. */
static bool is_static(int fd)
{
    Elf64_Ehdr h;
    Elf64_Phdr p;

    if (pread(fd, &h, sizeof h, 0) != sizeof h || memcmp(h.e_ident, ELFMAG, SELFMAG) != 0 ||
        h.e_ident[EI_CLASS] != ELFCLASS64 || h.e_phentsize != sizeof p) {
        return false;
    }
    for (unsigned i = 0; i < h.e_phnum; i++) {
        if (pread(fd, &p, sizeof p, (off_t)(h.e_phoff + i * sizeof p)) != sizeof p || p.p_type == PT_INTERP) {
            return false;
        }
    }
    return true;
}

static int check_program(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC), rv = EXIT_OK;

    if (stat(path, &st) == 0 && (((st.st_mode & S_ISUID) != 0 && st.st_uid != geteuid()) ||
                                    ((st.st_mode & S_ISGID) != 0 && st.st_gid != getegid()) ||
                                    (geteuid() != 0 && getxattr(path, "security.capability", NULL, 0) > 0))) {
        rv = complain(EXIT_FAILED, "%s runs with other rights than yours: nothing can be put before its libraries", path);
    } else if (fd >= 0 && is_static(fd)) {
        rv = complain(EXIT_FAILED, "%s is linked statically: nothing can be put before its libraries", path);
    }
    if (fd >= 0) {
        close(fd);
    }
    return rv;
}

int run_run(struct request *r)
{
    char library[PATH_MAX], program[PATH_MAX], preload[2 * PATH_MAX];
    const char *before = getenv("LD_PRELOAD");
    int rv;

    if (r->join != NULL && r->bind == NULL && getenv("DUST_BIND") == NULL) {
        return complain(EXIT_USAGE, "--join needs --bind H:P, the own address");
    }
    if (!find_library(library)) {
        return complain(EXIT_FAILED, LIBRARY " is neither beside this program nor in " DUST_LIBDIR);
    }
    rv = find_program(r->args[0], program);
    if (rv == EXIT_OK) {
        rv = check_program(program);
    }
    if (rv != EXIT_OK) {
        return rv;
    }
    snprintf(preload, sizeof preload, "%s%s%s", library, before != NULL && *before != '\0' ? ":" : "",
        before != NULL ? before : "");
    if (setenv("LD_PRELOAD", preload, 1) != 0 || (r->db != NULL && setenv("DUST_DB", r->db, 1) != 0) ||
        (r->bind != NULL && setenv("DUST_BIND", r->bind, 1) != 0) || (r->join != NULL && setenv("DUST_JOIN", r->join, 1) != 0) ||
        (r->keyfile != NULL && setenv("DUST_KEYFILE", r->keyfile, 1) != 0)) {
        return complain(EXIT_FAILED, "out of memory");
    }
    execv(program, r->args);
    return complain(errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE, "%s: %s", program, strerror(errno));
}
