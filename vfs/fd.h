/* fd - descriptors 0, 1 and 2 are the program's, also when it has closed them: what it prints would go into our files, and
 * what others send us to its input. (SQLite keeps off them for the same reason: os_unix.c, SQLITE_MINIMUM_FILE_DESCRIPTOR.) */
#ifndef DUST_VFS_FD_H
#define DUST_VFS_FD_H

/* Put /dev/null where the program has nothing, so that what libraries open does not come there. Any thread. */
void fd_reserve(void);

/* The same file under a number above them: for what was just opened, which is given up if it comes out lower. -1, with
 * errno, if fd is that already, or there is none left. Any thread. */
int fd_high(int fd);

#endif
