# What the machine looks like before and after: mounts, cgroups, network namespaces, files; and whether a process is left.

list_mounts() { awk '{ print $5 }' /proc/self/mountinfo | sort; }
list_cgroups() { find /sys/fs/cgroup -mindepth 1 -type d 2>/dev/null | sort; }
# By the number of the namespace: those of processes, and those that a file in /run/netns keeps.
list_network_namespaces() {
  { readlink /proc/[0-9]*/ns/net 2>/dev/null || true; ls /run/netns 2>/dev/null | sed 's|^|/run/netns/|' || true; } | sort -u
}
# The directories in which a daemon, a shim or a client could leave something. What others do below their own directories in
# /tmp and /var/tmp meanwhile is not the demo's: a new entry at the top is what it could leave there.
list_files() {
  { find /etc /opt /run /usr/local /var/lib -xdev; find /tmp /var/tmp -xdev -maxdepth 1; } 2>/dev/null | sort
}

residue_kinds="mounts cgroups network_namespaces files"

# residue_before DIRECTORY
residue_before() {
  mkdir -p "$1/before" "$1/after"
  local kind
  for kind in $residue_kinds; do "list_$kind" >"$1/before/$kind"; done
}

# Processes of the demo: those that name its directory, but for this script and what it runs, and those in its cgroups.
demo_processes() {
  local pid
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    case " $$ $BASHPID $PPID " in *" $pid "*) continue ;; esac
    if { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF "$1/" || grep -qF "/$2/" "/proc/$pid/cgroup" 2>/dev/null; then
      echo "$pid $({ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null)"
    fi
  done
}

# What is there now and was not before, of one kind. An administrator of a busy machine can leave out what is not the demo's by
# ORLOP_DEMO_IGNORE, an extended regular expression.
grown() {
  "list_$2" >"$1/after/$2"
  comm -13 "$1/before/$2" "$1/after/$2" | grep -vE "^$1(/|\$)|${ORLOP_DEMO_IGNORE:-^\$}" || true
}

# residue_after DIRECTORY NAMESPACE: shows that nothing is left, or what is. The kernel takes namespaces and cgroups apart a
# little later than their last process, so this looks again for up to ten seconds.
residue_after() {
  local left kind
  # Groups named after the namespace are the client's: each container's own group lay below and is gone, or rmdir refuses.
  if find /sys/fs/cgroup -depth -type d -name "$2" -exec rmdir {} + 2>/dev/null; then
    echo "the cgroup $2, parent of the demo's containers, is empty: removed"
  fi
  for _ in $(seq 100); do
    left=$(demo_processes "$1" "$2"; for kind in $residue_kinds; do grown "$1" "$kind"; done)
    [ -n "$left" ] || break
    sleep 0.1
  done
  expect "processes" "" "$(demo_processes "$1" "$2")"
  for kind in $residue_kinds; do
    case $kind in
      files) expect "files outside target/" "" "$(grown "$1" files)" ;;
      *) expect "${kind//_/ }" "" "$(grown "$1" "$kind")" ;;
    esac
  done
}

# end_containers DIRECTORY NAMESPACE: what a failed demo leaves running.
end_containers() {
  local pid
  demo_processes "$1" "$2" | while read -r pid _; do kill -KILL "$pid" 2>/dev/null || true; done
  sleep 0.5
  { list_mounts | grep "^$1/" || true; } | sort -r | while read -r mount; do umount -l "$mount" || true; done
  find /sys/fs/cgroup -depth -type d -path "*/$2*" -exec rmdir {} + 2>/dev/null || true
}

# remove_old_demo DIRECTORY NAMESPACE: what an earlier demo that was killed has left.
remove_old_demo() {
  [ -e "$1" ] || return 0
  end_containers "$1" "$2"
  rm -rf "$1"
}
