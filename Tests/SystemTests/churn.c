// SPDX-License-Identifier: Apache-2.0
//
// One writer of a random history, or of a given one.
//
//     churn BASE SEED NAMES DAEMON TRACE
//
// BASE has the directories share and outside; NAMES is FILES/DIRECTORIES, each a
// string of one-letter names. DAEMON is a process that this writer stops and
// continues at random moments, or 0. TRACE gets a line for each operation that
// succeeded: nanoseconds on CLOCK_MONOTONIC, the operation and its paths.
//
// Commands come on standard input, a line each, and are answered by a line with 0 or an
// errno: `run N` does N random operations, any other is one line of a trace
// without its time. The end of the input ends the program.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { PATH_SIZE = 512, SLOTS = 4 };

static uint64_t state;
static const char *files, *directories;
static pid_t daemon_pid;
static FILE *trace;
static int held[SLOTS] = {-1, -1, -1, -1};

static uint32_t dice(uint32_t sides) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (uint32_t)((state * 0x2545F4914F6CDD1Dull) >> 33) % sides;
}

static bool chance(uint32_t percent) { return dice(100) < percent; }

// The operations. Each returns 0 or an errno.

static int result(int value) { return value < 0 ? errno : 0; }

static bool is_stopped(pid_t pid) {
  char path[64], line[512];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *file = fopen(path, "r");
  if (!file) return true;
  size_t size = fread(line, 1, sizeof line - 1, file);
  line[size] = 0;
  fclose(file);
  char *end = strrchr(line, ')');
  return end && end[1] && end[2] == 'T';
}

static int stop_daemon(void) {
  if (kill(daemon_pid, SIGSTOP)) return errno;
  while (!is_stopped(daemon_pid)) {
  }
  return 0;
}

static int touch(const char *path, int flags, bool writes) {
  int fd = open(path, flags | O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  if (writes && write(fd, "x", 1) < 0) {
  }
  close(fd);
  return 0;
}

static int temporary(const char *directory, const char *path) {
  int fd = open(directory, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  char source[64];
  snprintf(source, sizeof source, "/proc/self/fd/%d", fd);
  int error = 0;
  if (write(fd, "x", 1) < 0) error = errno;
  if (linkat(AT_FDCWD, source, AT_FDCWD, path, AT_SYMLINK_FOLLOW)) error = errno;
  if (!error && write(fd, "y", 1) < 0) error = errno;
  close(fd);
  return error;
}

static int hold(const char *path, int slot) {
  if (held[slot] >= 0) close(held[slot]);
  held[slot] = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  return result(held[slot]);
}

static int write_held(int slot) {
  if (held[slot] < 0) return EBADF;
  return result((int)write(held[slot], "h", 1));
}

static int release(int slot) {
  if (held[slot] < 0) return EBADF;
  close(held[slot]);
  held[slot] = -1;
  return 0;
}

static int perform(const char *word, const char *a, const char *b) {
#define IS(text) (strcmp(word, text) == 0)
  if (IS("create")) return touch(a, O_CREAT, false);
  if (IS("write")) return touch(a, 0, true);
  if (IS("fill")) return touch(a, O_CREAT | O_TRUNC, true);
  if (IS("chmod")) return result(chmod(a, (mode_t)strtoul(b, NULL, 8)));
  if (IS("link")) return result(link(a, b));
  if (IS("unlink")) return result(unlink(a));
  if (IS("mkdir")) return result(mkdir(a, 0755));
  if (IS("rmdir")) return result(rmdir(a));
  if (IS("rename")) return result(rename(a, b));
  if (IS("exchange")) return result(renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE));
  if (IS("symlink")) return result(symlink("target", a));
  if (IS("mkfifo")) return result(mkfifo(a, 0644));
  if (IS("temporary")) return temporary(a, b);
  if (IS("hold")) return hold(a, atoi(b));
  if (IS("writeheld")) return write_held(atoi(a));
  if (IS("release")) return release(atoi(a));
  if (IS("stop")) return stop_daemon();
  if (IS("continue")) return result(kill(daemon_pid, SIGCONT));
  if (IS("pause")) return result(usleep((useconds_t)atoi(a)));
#undef IS
  return ENOSYS;
}

static bool act(const char *word, const char *a, const char *b) {
  if (perform(word, a, b)) return false;
  if (trace) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    fprintf(trace, "%lld %s %s %s\n", now.tv_sec * 1000000000ll + now.tv_nsec, word,
            *a ? a : "-", *b ? b : "-");
  }
  return true;
}

// Random histories.

static char any(const char *set) { return set[dice((uint32_t)strlen(set))]; }

static void append(char *path, char name) {
  size_t size = strlen(path);
  path[size] = '/';
  path[size + 1] = name;
  path[size + 2] = 0;
}

static void parent(char *path) {
  strcpy(path, chance(70) ? "share" : "outside");
  for (uint32_t depth = chance(45) ? 0 : 1 + dice(2); depth; depth--) append(path, any(directories));
}

static void somewhere(char *path, bool is_directory) {
  parent(path);
  append(path, any(chance(90) == is_directory ? directories : files));
}

// The other path keeps its name more often than chance has it: moves between
// places, which are seen from the place that is in the share.
static void elsewhere(char *path, const char *from, bool is_directory) {
  somewhere(path, is_directory);
  if (chance(40)) path[strlen(path) - 1] = from[strlen(from) - 1];
}

static uint32_t count;

static void remove_tree(const char *path) {
  struct stat status;
  if (lstat(path, &status)) return;
  if (!S_ISDIR(status.st_mode)) {
    count += act("unlink", path, "");
    return;
  }
  DIR *directory = opendir(path);
  if (!directory) return;
  struct dirent *entry;
  while ((entry = readdir(directory))) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    char below[PATH_SIZE];
    if (snprintf(below, sizeof below, "%s/%s", path, entry->d_name) < PATH_SIZE) remove_tree(below);
  }
  closedir(directory);
  count += act("rmdir", path, "");
}

static void one_step(void) {
  char a[PATH_SIZE], b[PATH_SIZE], text[16];
  uint32_t what = dice(100);
  bool is_directory = chance(40);
  if (what < 14) {
    somewhere(a, false);
    count += act(chance(50) ? "create" : "fill", a, "");
  } else if (what < 20) {
    somewhere(a, false);
    count += act("write", a, "");
  } else if (what < 24) {
    somewhere(a, is_directory);
    count += act("chmod", a, is_directory ? (chance(50) ? "755" : "700") : (chance(50) ? "644" : "600"));
  } else if (what < 31) {
    somewhere(a, false);
    elsewhere(b, a, false);
    count += act("link", a, b);
  } else if (what < 40) {
    somewhere(a, false);
    count += act("unlink", a, "");
  } else if (what < 50) {
    somewhere(a, true);
    count += act("mkdir", a, "");
  } else if (what < 53) {
    somewhere(a, true);
    count += act("rmdir", a, "");
  } else if (what < 68) {
    somewhere(a, is_directory);
    elsewhere(b, a, is_directory);
    count += act("rename", a, b);
  } else if (what < 74) {
    somewhere(a, is_directory);
    elsewhere(b, a, chance(80) ? is_directory : !is_directory);
    count += act("exchange", a, b);
  } else if (what < 82) {  // there and back, and perhaps there again
    somewhere(a, is_directory);
    elsewhere(b, a, is_directory);
    for (uint32_t left = 2 + dice(6); left && act("rename", a, b); left--) {
      count++;
      char swap[PATH_SIZE];
      strcpy(swap, a);
      strcpy(a, b);
      strcpy(b, swap);
    }
  } else if (what < 86) {  // the same of links
    somewhere(a, false);
    elsewhere(b, a, false);
    for (uint32_t left = 2 + dice(4); left; left--)
      count += act(left % 2 ? "unlink" : "link", left % 2 ? b : a, left % 2 ? "" : b);
  } else if (what < 88) {
    somewhere(a, false);
    count += act(chance(70) ? "symlink" : "mkfifo", a, "");
  } else if (what < 90) {
    parent(a);
    somewhere(b, false);
    count += act("temporary", a, b);
  } else if (what < 95) {
    snprintf(text, sizeof text, "%u", dice(SLOTS));
    somewhere(a, false);
    count += act("hold", a, text);
    if (chance(70)) count += act("unlink", a, "");
    if (chance(50)) count += act("writeheld", text, "");
    if (chance(50)) count += act("release", text, "");
  } else if (what < 98) {
    snprintf(text, sizeof text, "%u", dice(SLOTS));
    count += act(chance(50) ? "writeheld" : "release", text, "");
  } else {
    somewhere(a, true);
    remove_tree(a);
  }
}

static uint32_t window(void) {
  uint32_t size = dice(3);
  return size == 0 ? 2 + dice(20) : size == 1 ? 20 + dice(200) : 200 + dice(1500);
}

static void run(uint32_t wanted) {
  count = 0;
  bool stopped = false;
  uint32_t turn = daemon_pid ? dice(40) : UINT32_MAX;
  for (uint32_t tries = 0; count < wanted && tries < wanted * 40; tries++) {
    if (count >= turn) {
      if (stopped) {
        act("continue", "", "");
        if (chance(30)) {
          char text[16];
          snprintf(text, sizeof text, "%u", dice(3000));
          act("pause", text, "");
        }
        turn = count + (chance(30) ? 1 : dice(150));
      } else {
        act("stop", "", "");
        turn = count + window();
      }
      stopped = !stopped;
    }
    one_step();
  }
  if (stopped) act("continue", "", "");
  if (trace) fflush(trace);
}

int main(int argc, char **argv) {
  if (argc != 6 || chdir(argv[1])) return 64;
  // The last reader of a FIFO may be gone between its being opened and written to.
  signal(SIGPIPE, SIG_IGN);
  state = strtoull(argv[2], NULL, 10) * 2 + 1;
  for (int i = 0; i < 8; i++) dice(2);
  files = strtok(argv[3], "/");
  directories = strtok(NULL, "/");
  daemon_pid = (pid_t)atoi(argv[4]);
  trace = *argv[5] ? fopen(argv[5], "w") : NULL;
  char line[2 * PATH_SIZE + 64], word[32], a[PATH_SIZE], b[PATH_SIZE];
  while (fgets(line, sizeof line, stdin)) {
    int error = 0;
    a[0] = b[0] = 0;
    if (sscanf(line, "%31s %511s %511s", word, a, b) < 1) continue;
    if (strcmp(word, "run") == 0)
      run((uint32_t)atoi(a));
    else
      error = perform(word, a, b);
    printf("%d\n", error);
    fflush(stdout);
  }
  return 0;
}
