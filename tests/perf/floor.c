/* The limit for starting one container: only what cannot be left out for default namespaces, mounts, devices, masks and
   cgroups, so that a runtime's own cost can be told from the kernel's.

   On cgroup v1 the new process writes "0" to the `tasks` file of each group itself, which takes no global lock; on v2 it is cloned
   into its group. The caller times it from outside, as it times the runtimes.

   usage: floor ROOTFS CGROUP-NAME
   Runs /bin/true in ROOTFS and returns its exit status. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void check(int result, const char *what) {
  if (result < 0) {
    perror(what);
    _exit(1);
  }
}

static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  check(fd, path);
  check(write(fd, text, strlen(text)), path);
  close(fd);
}

/* Copies a cpuset setting from the parent group: on v1 a new group starts with none. */
static void inherit(const char *group, const char *name) {
  char path[512], text[256];
  snprintf(path, sizeof path, "%s/../%s", group, name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  check(fd, path);
  ssize_t length = read(fd, text, sizeof text - 1);
  check(length, path);
  close(fd);
  text[length] = 0;
  snprintf(path, sizeof path, "%s/%s", group, name);
  write_file(path, text);
}

static const char *const controllers[] = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"};
enum { CONTROLLERS = sizeof controllers / sizeof *controllers };
static char groups[CONTROLLERS][256];
static int tasks[CONTROLLERS], group_count;

static int make_groups(const char *name, int unified) {
  if (unified) {
    snprintf(groups[0], sizeof groups[0], "/sys/fs/cgroup/%s", name);
    check(mkdir(groups[0], 0755), groups[0]);
    group_count = 1;
    int fd = open(groups[0], O_DIRECTORY | O_CLOEXEC);
    check(fd, groups[0]);
    return fd;
  }
  for (int i = 0; i < CONTROLLERS; i++) {
    char path[512], *group = groups[group_count];
    snprintf(group, sizeof groups[0], "/sys/fs/cgroup/%s/%s", controllers[i], name);
    if (mkdir(group, 0755) < 0) {
      if (errno == ENOENT) continue;
      check(-1, group);
    }
    if (!strcmp(controllers[i], "cpuset")) {
      inherit(group, "cpuset.cpus");
      inherit(group, "cpuset.mems");
    }
    if (!strcmp(controllers[i], "devices")) {
      static const char *const rules[] = {"c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm",
                                          "c 1:9 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"};
      snprintf(path, sizeof path, "%s/devices.deny", group);
      write_file(path, "a");
      snprintf(path, sizeof path, "%s/devices.allow", group);
      for (size_t rule = 0; rule < sizeof rules / sizeof *rules; rule++) write_file(path, rules[rule]);
    }
    snprintf(path, sizeof path, "%s/tasks", group);
    check(tasks[group_count] = open(path, O_WRONLY | O_CLOEXEC), path);
    group_count++;
  }
  return -1;
}

static void make_mounts(const char *root) {
  const unsigned long safe = MS_NOSUID | MS_NOEXEC | MS_NODEV;
  check(mount(0, "/", 0, MS_REC | MS_SLAVE, 0), "slave");
  check(mount(root, root, 0, MS_BIND | MS_REC, 0), "bind");
  check(chdir(root), "chdir");
  check(mount("proc", "proc", "proc", safe, 0), "proc");
  check(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"), "dev");
  check(mkdir("dev/pts", 0755) | mkdir("dev/shm", 0755) | mkdir("dev/mqueue", 0755), "directories in dev");
  check(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"), "devpts");
  check(mount("shm", "dev/shm", "tmpfs", safe, "mode=1777,size=65536k"), "shm");
  check(mount("mqueue", "dev/mqueue", "mqueue", safe, 0), "mqueue");
  check(mount("sysfs", "sys", "sysfs", safe | MS_RDONLY, 0), "sysfs");
}

static void make_devices(void) {
  static const struct { const char *path; int major, minor; } nodes[] = {
      {"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0}};
  static const char *const links[][2] = {{"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
                                         {"/proc/self/fd/2", "dev/stderr"}, {"pts/ptmx", "dev/ptmx"}};
  for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
    check(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), nodes[i].path);
  for (size_t i = 0; i < sizeof links / sizeof *links; i++) check(symlink(links[i][0], links[i][1]), links[i][1]);
}

static void make_masks(void) {
  static const char *const hidden[] = {"proc/acpi", "proc/asound", "proc/kcore", "proc/keys", "proc/latency_stats", "proc/timer_list",
                                       "proc/timer_stats", "proc/sched_debug", "proc/scsi", "sys/firmware"};
  static const char *const readonly[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
  struct stat st;
  for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++) {
    if (stat(hidden[i], &st)) continue;
    check(S_ISDIR(st.st_mode) ? mount("tmpfs", hidden[i], "tmpfs", MS_RDONLY, "size=0k") : mount("dev/null", hidden[i], 0, MS_BIND, 0), hidden[i]);
  }
  for (size_t i = 0; i < sizeof readonly / sizeof *readonly; i++) {
    const char *path = readonly[i];
    if (stat(path, &st)) continue;
    check(mount(path, path, 0, MS_BIND | MS_REC, 0), path);
    check(mount(path, path, 0, MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_BIND | MS_REMOUNT | MS_RDONLY, 0), path);
  }
}

static void become_container(const char *root, int unified) {
  if (!unified) {
    for (int i = 0; i < group_count; i++) check(write(tasks[i], "0", 1), "tasks");
    /* After the move, or the namespace's root would be the parent's group. */
    check(unshare(CLONE_NEWCGROUP), "cgroup namespace");
  }
  make_mounts(root);
  make_devices();
  make_masks();
  check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
  check(umount2(".", MNT_DETACH), "umount");
  check(chdir("/"), "chdir");
  check(sethostname("floor", 5), "sethostname");
  check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
  char *const arguments[] = {"/bin/true", 0}, *const environment[] = {"PATH=/bin", 0};
  execve(arguments[0], arguments, environment);
  check(-1, "execve");
}

int main(int count, char **words) {
  if (count != 3) return 2;
  int unified = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
  int group = make_groups(words[2], unified);
  struct clone_args args = {.flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS, .exit_signal = SIGCHLD};
  if (unified) {
    args.flags |= CLONE_INTO_CGROUP | CLONE_NEWCGROUP;
    args.cgroup = group;
  }
  long pid = syscall(SYS_clone3, &args, sizeof args);
  check(pid, "clone3");
  if (!pid) become_container(words[1], unified);
  int status;
  check(waitpid(pid, &status, 0), "wait");
  for (int i = 0; i < group_count; i++) check(rmdir(groups[i]), groups[i]);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
