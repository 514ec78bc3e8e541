/* Fails, or kills the process at, the N-th call below a folder that writes, syncs, creates or renames.

   Loaded with LD_PRELOAD and armed by a call, so that a process can import its libraries undisturbed and fork children
   that are armed each for another call. Counts calls where `fail_at` is 0. The count is shared by all threads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static size_t below_length;
static atomic_int armed, calls;
static int fail_at, fail_with, stays; /* fail_with: an errno, or 0 to kill; stays: every call from then on fails */
static char failed[64];

void arm(const char *folder, int at, int with, int on) {
  below_length = strlen(folder);
  memcpy(below, folder, below_length + 1);
  fail_at = at;
  fail_with = with;
  stays = on;
  calls = 0;
  armed = 1;
}

int count(void) { return calls; }
const char *failed_call(void) { return failed; }

static int is_below(const char *path) {
  return path[0] == '/' && strncmp(path, below, below_length) == 0 &&
         (path[below_length] == '/' || path[below_length] == 0);
}

static int at_is_below(int directory, const char *path) {
  char absolute[8192], link[64];
  if (path[0] == '/') return is_below(path);
  if (directory == AT_FDCWD) {
    if (!getcwd(absolute, 4096)) return 0;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, absolute, 4096);
    if (length < 0) return 0;
    absolute[length] = 0;
  }
  return is_below(absolute);
}

static int fd_is_below(int fd) {
  char target[4097], link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, target, sizeof target - 1);
  if (length < 0) return 0;
  target[length] = 0;
  return is_below(target);
}

/* Whether this call is to fail; errno is set then. */
static int fails(const char *name) {
  int number = atomic_fetch_add(&calls, 1) + 1;
  if (fail_at == 0 || number < fail_at || (number > fail_at && !stays)) return 0;
  if (number == fail_at) snprintf(failed, sizeof failed, "%s", name);
  if (fail_with == 0) kill(getpid(), SIGKILL);
  errno = fail_with;
  return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON_FD(name, fd) if (armed && fd_is_below(fd) && fails(name)) return -1
#define ON_PATH(name, directory, path) if (armed && at_is_below(directory, path) && fails(name)) return -1

ssize_t write(int fd, const void *data, size_t size) { REAL(write); ON_FD("write", fd); return real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); ON_FD("pwrite", fd); return real(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); ON_FD("pwrite", fd); return real(fd, data, size, at); }
ssize_t writev(int fd, const struct iovec *parts, int many) { REAL(writev); ON_FD("writev", fd); return real(fd, parts, many); }
ssize_t sendfile(int out, int in, off_t *at, size_t size) { REAL(sendfile); ON_FD("sendfile", out); return real(out, in, at, size); }
ssize_t sendfile64(int out, int in, off64_t *at, size_t size) { REAL(sendfile64); ON_FD("sendfile", out); return real(out, in, at, size); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(copy_file_range); ON_FD("copy_file_range", out); return real(in, from, out, to, size, flags); }
int fsync(int fd) { REAL(fsync); ON_FD("fsync", fd); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); ON_FD("fdatasync", fd); return real(fd); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); ON_FD("ftruncate", fd); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); ON_FD("ftruncate", fd); return real(fd, size); }
int posix_fallocate(int fd, off_t at, off_t size) {
  REAL(posix_fallocate); if (armed && fd_is_below(fd) && fails("fallocate")) return errno; return real(fd, at, size); }
int rename(const char *from, const char *to) { REAL(rename); ON_PATH("rename", AT_FDCWD, to); return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); ON_PATH("rename", b, to); return real(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(renameat2); ON_PATH("rename", b, to); return real(a, from, b, to, flags); }
int link(const char *from, const char *to) { REAL(link); ON_PATH("link", AT_FDCWD, to); return real(from, to); }
int symlink(const char *from, const char *to) { REAL(symlink); ON_PATH("symlink", AT_FDCWD, to); return real(from, to); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); ON_PATH("mkdir", AT_FDCWD, path); return real(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { REAL(mkdirat); ON_PATH("mkdir", at, path); return real(at, path, mode); }

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }
#define CREATES(flags) ((flags) & O_CREAT)

int open(const char *path, int flags, ...) {
  REAL(open); MODE(flags) if (CREATES(flags)) ON_PATH("open", AT_FDCWD, path); return real(path, flags, mode); }
int open64(const char *path, int flags, ...) {
  REAL(open64); MODE(flags) if (CREATES(flags)) ON_PATH("open", AT_FDCWD, path); return real(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) {
  REAL(openat); MODE(flags) if (CREATES(flags)) ON_PATH("open", at, path); return real(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) {
  REAL(openat64); MODE(flags) if (CREATES(flags)) ON_PATH("open", at, path); return real(at, path, flags, mode); }

/* stdio writes past the names above, within the C library. */
FILE *fopen(const char *path, const char *how) {
  REAL(fopen); if (armed && how[0] != 'r' && at_is_below(AT_FDCWD, path) && fails("open")) return NULL; return real(path, how); }
FILE *fopen64(const char *path, const char *how) {
  REAL(fopen64); if (armed && how[0] != 'r' && at_is_below(AT_FDCWD, path) && fails("open")) return NULL; return real(path, how); }
size_t fwrite(const void *data, size_t size, size_t many, FILE *file) {
  REAL(fwrite); if (armed && fd_is_below(fileno(file)) && fails("write")) return 0; return real(data, size, many, file); }
